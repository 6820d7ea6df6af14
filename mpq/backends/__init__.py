"""Assignment -> a model that runs in it."""

from mpq.backends.fake_quant import apply

__all__ = ["apply"]
