"""Calibration examples made from the network alone, for whoever has no data."""

from mpq._support.registry import Registry
from mpq.network.synthetic._base import DataSource
from mpq.network.synthetic.distilled import DistilledInputs
from mpq.network.synthetic.noise import Noise
from mpq.network.synthetic.self_generated import SelfGeneratedText
from mpq.network.synthetic.tokens import RandomTokens

DATA_SOURCES: Registry[DataSource] = Registry(
    "data source",
    (
        DistilledInputs,
        Noise,
        SelfGeneratedText,
        RandomTokens,
    ),
    group="mpq.data_sources",
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
