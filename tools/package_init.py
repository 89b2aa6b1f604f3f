"""A light object detector with YOLOv5's workflow: `yolov5_mobilevit.load("best.pt")`.

The build makes this file the `__init__` of the installed package. It imports nothing until a name is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubconf import load
    from utils.files import VERSION as __version__

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from hubconf import load

        return load
    if name == "__version__":
        from utils.files import VERSION

        return VERSION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
