"""Tuning: what is left to move in a quantized network is trained to answer as the original does.

A network in its assigned formats, the original and examples in; other codes and scales, biases and
norms out, in the same formats.
"""

from mpq._support.registry import Registry
from mpq.tuning._base import Tuning
from mpq.tuning.parts import TuneAll, TuneScales

TUNINGS: Registry[Tuning] = Registry("tuning", (TuneScales, TuneAll), group="mpq.tunings")
"""What can be tuned, by the name that ``--tune`` takes."""

__all__ = ["TUNINGS", "TuneAll", "TuneScales", "Tuning"]
