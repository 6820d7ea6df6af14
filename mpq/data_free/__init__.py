"""Calibration examples made from the network alone, for whoever has no data."""

from mpq.data_free._base import DataSource
from mpq.data_free.distilled import DistilledInputs
from mpq.data_free.noise import Noise
from mpq.data_free.self_generated import SelfGeneratedText
from mpq.data_free.tokens import RandomTokens
from mpq.registry import Registry

DATA_SOURCES: Registry[DataSource] = Registry(
    "data source",
    (
        DistilledInputs,
        Noise,
        SelfGeneratedText,
        RandomTokens,
    ),
)
"""Every source of examples, by its name."""

__all__ = [
    "DATA_SOURCES",
    "DataSource",
    "DistilledInputs",
    "Noise",
    "RandomTokens",
    "SelfGeneratedText",
]
