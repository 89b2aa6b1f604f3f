"""A Kalman filter of boxes that move at a constant velocity and keep their size, for all tracks at once."""

from __future__ import annotations

import numpy as np

from utils.boxes import xyxy2ltwh

# Standard deviations as fractions of the box's width (of x, width) or height (of y, height).
MEASURED = 0.05  # of a detection's center and size
FIRST_SPEED = 0.1  # of the unknown speed of a new object, per frame
ACCELERATION = 0.02  # per frame and frame
GROWTH = 0.03  # of the size, per square root of a frame


class Kalman:
    """Estimates of n boxes: center x, y, width, height in pixels, and the speed of the center in pixels per frame.

    The four coordinates are independent, so each has a filter of two numbers, its value and its speed, written out as
    arrays (n, 4); the speed of width and height stays 0, so that the box of a hidden object neither grows nor vanishes.

    Attributes:
        value, speed: (n, 4). Their covariance is [[var, both], [both, var_speed]], each (n, 4).

    Source: Kalman 1960, doi:10.1115/1.3662552; noise of a random acceleration: Bar-Shalom et al. 2001, section 6.3.2.
    """

    FIELDS = ("value", "speed", "var", "both", "var_speed")
    MOVES = np.array([1.0, 1.0, 0.0, 0.0])

    def __init__(self, xyxy: np.ndarray):
        self.value = centered(xyxy)
        unit = self.unit()
        self.speed, self.both = np.zeros_like(self.value), np.zeros_like(self.value)
        self.var = np.square(MEASURED * unit)
        self.var_speed = np.square(FIRST_SPEED * unit * self.MOVES)

    def unit(self) -> np.ndarray:
        """(n, 4) width, height, width, height."""
        return np.tile(self.value[:, 2:], 2)

    @property
    def xyxy(self) -> np.ndarray:
        """(n, 4) corner pixels, float64."""
        center, half = self.value[:, :2], self.value[:, 2:] / 2
        return np.concatenate([center - half, center + half], axis=1)

    def keep(self, rows: np.ndarray) -> None:
        """Drop all boxes but those of `rows`, a mask or indices."""
        for name in self.FIELDS:
            setattr(self, name, getattr(self, name)[rows])

    def append(self, xyxy: np.ndarray) -> None:
        """Add new boxes, which were seen once, at the end."""
        other = Kalman(xyxy)
        for name in self.FIELDS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))

    def predict(self, frames: int) -> None:
        """Move all boxes on by a number of frames."""
        unit = self.unit()
        push = np.square(ACCELERATION * unit * self.MOVES)
        drift = np.square(GROWTH * unit * (1 - self.MOVES))
        self.value = self.value + self.speed * frames
        self.var = self.var + 2 * frames * self.both + frames**2 * self.var_speed + push * frames**4 / 4
        self.var = self.var + drift * frames
        self.both = self.both + frames * self.var_speed + push * frames**3 / 2
        self.var_speed = self.var_speed + push * frames**2

    def update(self, rows: np.ndarray, xyxy: np.ndarray) -> None:
        """Correct the boxes `rows` (k,), all different, by what was measured, (k, 4) corner pixels."""
        surprise = centered(xyxy) - self.value[rows]
        total = self.var[rows] + np.square(MEASURED * self.unit()[rows])
        gain, gain_speed = self.var[rows] / total, self.both[rows] / total
        self.value[rows] += gain * surprise
        self.speed[rows] += gain_speed * surprise
        self.var_speed[rows] -= gain_speed * self.both[rows]
        self.both[rows] *= 1 - gain
        self.var[rows] *= 1 - gain


def centered(xyxy: np.ndarray) -> np.ndarray:
    """(n, 4) corner pixels -> center, width, height, float64; sides are at least one pixel."""
    ltwh = xyxy2ltwh(np.asarray(xyxy, np.float64).reshape(-1, 4))
    return np.concatenate([ltwh[:, :2] + ltwh[:, 2:] / 2, np.maximum(ltwh[:, 2:], 1.0)], axis=1)
