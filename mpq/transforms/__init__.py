"""A network gets other parameters with the same function, that lose less when they are rounded.

The network, calibration examples and precisions in; changes of parameters out, which searches,
simulations and every export make before anything else.
"""

from mpq._support.registry import Registry
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.equalize import Equalize
from mpq.transforms.rotate import Rotate
from mpq.transforms.shift import Shift
from mpq.transforms.smooth import Smooth

TRANSFORMS: Registry[Transform] = Registry(
    "transform", (Equalize, Rotate, Shift, Smooth), group="mpq.transforms"
)
"""Every transformation, by the name that ``--transform`` takes."""

__all__ = [
    "TRANSFORMS",
    "Equalize",
    "Found",
    "Rotate",
    "Shift",
    "Smooth",
    "Transform",
    "Transforming",
]
