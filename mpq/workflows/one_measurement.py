"""What measuring one assignment takes, told from some examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar, final

import torch

from mpq.quantization.quantizer import quantized
from mpq.workflows.clock import clocked
from mpq.workflows.peak_memory import peak_memory_bytes
from mpq.workflows.room import rounds_in_calls
from mpq.workflows.setup import Prepared

Value = TypeVar("Value")


@final
@dataclass(frozen=True)
class OneMeasurement:
    """Of an assignment to all layers, on held-out examples.

    Args:
        fixed_s: Seconds whatever the data: weights are rounded.
        example_s: Seconds for each example.
        own_s: Seconds for each example, once: what the original answers to it.
        peak_bytes: At most; ``None``: not known.
    """

    fixed_s: float
    example_s: float
    own_s: float
    peak_bytes: int | None

    @classmethod
    def of(cls, prepared: Prepared) -> Self:
        """Measured on the held-out examples that are there, with the first candidate."""
        device, size = prepared.network.device, prepared.held_out.num_examples
        evaluator, own_s, _ = timed(lambda: prepared.on_held_out, device)
        precisions = evaluator.uniform(prepared.candidates[0])
        _, row_s, peak = timed(lambda: evaluator.measure(precisions), device)

        def rounded() -> None:
            # Rounding during calls counts with every batch.
            in_calls = rounds_in_calls(evaluator.network)
            with quantized(evaluator.network, precisions, evaluator.quantizer, in_calls):
                pass

        _, fixed_s, _ = timed(rounded, device)
        return cls(fixed_s, max(row_s - fixed_s, 0.0) / size, own_s / size, peak)


def timed(
    compute: Callable[[], Value], device: torch.device | None
) -> tuple[Value, float, int | None]:
    """What a computation gives, its seconds, and what it takes at its peak on a device."""
    at = device or torch.device("cpu")
    (value, seconds), peak = peak_memory_bytes(lambda: clocked(compute, at), at)
    return value, seconds, peak
