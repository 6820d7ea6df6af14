"""Weights become codes with regard to the inputs that they meet.

A weight's rows, the second moment of what they read, and formats in; codes, scales and zero points
out, which estimators, the simulation and every export then share.
"""

from mpq._support.registry import Registry
from mpq.rounding._base import WeightRounding
from mpq.rounding.adaround import AdaRound
from mpq.rounding.auto import AutoRounding
from mpq.rounding.coordinate_descent import CoordinateDescent
from mpq.rounding.gptq import Gptq
from mpq.rounding.nearest import Nearest
from mpq.rounding.quantease import QuantEase
from mpq.rounding.weighted_nearest import WeightedNearest

ROUNDINGS: Registry[WeightRounding] = Registry(
    "rounding",
    (Nearest, AutoRounding, Gptq, CoordinateDescent, QuantEase, AdaRound, WeightedNearest),
    group="mpq.roundings",
)
"""Every rounding of weights, by the name that ``--rounding`` takes."""

__all__ = [
    "ROUNDINGS",
    "AdaRound",
    "AutoRounding",
    "CoordinateDescent",
    "Gptq",
    "Nearest",
    "QuantEase",
    "WeightRounding",
    "WeightedNearest",
]
