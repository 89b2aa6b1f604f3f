"""The best one-to-one pairs between rows and columns of a table of gains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def best_pairs(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs of the largest total gain, each row and column in at most one, rows ascending.

    Few boxes overlap, so the table falls into small groups of rows and columns, which are solved one by one.

    Args:
        gain: (n, m), n or m may be 0. Only entries above 0 become pairs.
    """
    pairs = list[tuple[int, int]]()
    for rows, columns in groups(gain > 0):
        part = gain[np.ix_(rows, columns)]
        tall = len(rows) > len(columns)
        chosen = cheapest(-part.T if tall else -part)
        for short, long in enumerate(chosen.tolist()):
            row, column = (long, short) if tall else (short, long)
            if part[row, column] > 0:
                pairs.append((int(rows[row]), int(columns[column])))
    table = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def groups(linked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns (indices) of each connected part of a table (n, m) of links."""
    left = np.array(linked.any(axis=1))
    while left.any():
        rows, columns = np.array([left.argmax()]), np.zeros(0, np.int64)
        count = 0
        while count < len(rows):
            count = len(rows)
            columns = np.flatnonzero(linked[rows].any(axis=0))
            rows = np.flatnonzero(linked[:, columns].any(axis=1))
        left[rows] = False
        yield rows, columns


def cheapest(cost: np.ndarray) -> np.ndarray:
    """The column of each row (n,), all different, with the least total cost.

    Args:
        cost: (n, m), n <= m, finite.

    Source: shortest augmenting paths with node prices: Kuhn 1955; Edmonds and Karp 1972, doi:10.1145/321694.321699.
    """
    n, m = cost.shape
    row_price, column_price = np.zeros(n), np.zeros(m)
    owner = np.full(m, -1)  # the row that has a column
    for start in range(n):
        distance, before = np.full(m, np.inf), np.full(m, -1)  # of each column from `start`; the column before it
        open_columns = np.ones(m, bool)
        row, column, length = start, -1, 0.0
        while True:  # extend the shortest path until it reaches a free column
            through = length + cost[row] - row_price[row] - column_price
            shorter = open_columns & (through < distance)
            distance[shorter], before[shorter] = through[shorter], column
            column = int(np.where(open_columns, distance, np.inf).argmin())
            length, open_columns[column] = float(distance[column]), False
            if owner[column] < 0:
                break
            row = int(owner[column])
        passed = ~open_columns & (owner >= 0)
        row_price[start] += length
        row_price[owner[passed]] += length - distance[passed]
        column_price[passed] -= length - distance[passed]
        while column >= 0:  # each column of the path gets the row of the one before it
            previous = int(before[column])
            owner[column] = owner[previous] if previous >= 0 else start
            column = previous
    chosen = np.empty(n, np.int64)
    chosen[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return chosen
