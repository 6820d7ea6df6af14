"""Scales, biases and norms; or codes as well."""

from dataclasses import dataclass
from typing import ClassVar, final

from mpq.errors import InputError
from mpq.tuning._base import Tuning


@final
@dataclass(frozen=True)
class TuneScales(Tuning):
    """Scales of weights, biases and norms; codes stay.

    Args:
        epochs: See ``Tuning``.
        lr: See ``Tuning``.
        batch_size: See ``Tuning``.
        blocks: See ``Tuning``.
        share: See ``Tuning``.
    """

    name: ClassVar[str] = "scales"
    summary: ClassVar[str] = "scales of weights, biases and norms; codes stay"
    moves_codes: ClassVar[bool] = False

    epochs: int = 8
    lr: float = 1e-3
    batch_size: int = 4
    blocks: bool = False
    share: float = 0.25

    def __post_init__(self) -> None:
        self.check()


@final
@dataclass(frozen=True)
class TuneAll(Tuning):
    """Codes of integer formats as well, through straight-through rounding.

    Args:
        epochs: See ``Tuning``.
        lr: See ``Tuning``.
        code_lr: Adam's largest step of a latent code, in codes.
        batch_size: See ``Tuning``.
        blocks: See ``Tuning``.
        share: See ``Tuning``.
    """

    name: ClassVar[str] = "all"
    summary: ClassVar[str] = "codes of integer formats as well, straight through their rounding"
    moves_codes: ClassVar[bool] = True

    epochs: int = 8
    lr: float = 1e-3
    code_lr: float = 1e-3
    batch_size: int = 4
    blocks: bool = False
    share: float = 0.25

    def __post_init__(self) -> None:
        self.check()
        if not 0 < self.code_lr < 1:
            raise InputError(f"{self.name}:code_lr is between 0 and 1; got {self.code_lr}")
