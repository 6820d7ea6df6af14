"""What a device is asked to run at once."""

from dataclasses import dataclass
from typing import final

from mpq.errors import InputError


@final
@dataclass(frozen=True)
class Workload:
    """How many examples at once.

    Args:
        batch_size: Examples that are run at once.

    Raises:
        InputError: If the batch size is below 1.
    """

    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"the batch size is at least 1; got {self.batch_size}")
