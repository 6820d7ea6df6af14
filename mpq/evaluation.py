"""What a quantized network really does on held-out examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.assignment import Assignment
from mpq.backends import apply
from mpq.calibration import IGNORED_TARGET, Batch, Calibration
from mpq.divergence import kl_divergence
from mpq.errors import DataError
from mpq.model import device_of
from mpq.outputs import position_logits, position_weights


@final
@dataclass(frozen=True)
class Measurement:
    """Measured on examples.

    Args:
        kl_nats: Mean KL divergence from the original network, per example.
        accuracy: Share of targets that are the most likely class; ``None`` without targets.
        cross_entropy_nats: Mean negative log-likelihood of the targets; ``None`` without targets.
        num_examples: How many examples.
    """

    kl_nats: float
    accuracy: float | None
    cross_entropy_nats: float | None
    num_examples: int


@final
class Reference:
    """The original network's answers, which others are compared with.

    Logits of all examples are kept in memory.

    Args:
        module: The network as it came.
        data: The examples.
    """

    def __init__(self, module: nn.Module, data: Calibration) -> None:
        self._data = data
        with torch.no_grad():
            self._logits = [logits for _, logits in _run(module, data)]

    def compare(self, module: nn.Module) -> Measurement:
        """Runs another network on the same examples.

        Raises:
            ModelError: If its output is not finite.
            DataError: If the data gives other batches than before.
        """
        divergence, hits, nll = 0.0, 0, 0.0
        examples = targets = 0
        with torch.no_grad():
            for index, (batch, logits) in enumerate(_run(module, self._data)):
                kl = kl_divergence(self._same_shape(index, logits), logits)
                divergence += float((kl * position_weights(batch, logits)).sum())
                examples += batch.size
                counted, correct, loss = _against_targets(batch, logits)
                targets, hits, nll = targets + counted, hits + correct, nll + loss
        return Measurement(
            kl_nats=divergence / examples,
            accuracy=hits / targets if targets else None,
            cross_entropy_nats=nll / targets if targets else None,
            num_examples=examples,
        )

    def _same_shape(self, index: int, logits: Tensor) -> Tensor:
        if index >= len(self._logits) or self._logits[index].shape != logits.shape:
            raise DataError(
                "the data gave other batches than at first; the function must yield the same "
                "examples every time it is called"
            )
        return self._logits[index]


def evaluate(model: nn.Module, assignment: Assignment, data: Any) -> dict[str, Measurement]:
    """The original network and the one in the assigned formats, on the same examples.

    Args:
        model: The network that the assignment was found for, in evaluation mode.
        assignment: What to apply; see ``mpq.apply``.
        data: Held-out examples; see ``Calibration``.

    Returns:
        ``original`` and ``quantized``.

    Raises:
        MismatchError: If the assignment belongs to another network.
    """
    quantized = apply(model, assignment)
    reference = Reference(model, Calibration.of(data))
    return {"original": reference.compare(model), "quantized": reference.compare(quantized)}


def _run(module: nn.Module, data: Calibration) -> Iterator[tuple[Batch, Tensor]]:
    """Every batch on the module's device, with its logits ``[N, P, C]``."""
    device = device_of(module)
    for batch in data:
        placed = batch.to(device)
        yield placed, position_logits(module(*placed.args, **placed.kwargs))


def _against_targets(batch: Batch, logits: Tensor) -> tuple[int, int, float]:
    """Targets counted, hits among them, summed negative log-likelihood in nats."""
    if batch.targets is None:
        return 0, 0, 0.0
    targets = batch.targets.reshape(batch.size, -1)
    if targets.is_floating_point() or targets.shape != logits.shape[:2]:
        raise DataError(
            f"targets must be class indices {tuple(logits.shape[:2])}, one per position; got "
            f"{tuple(batch.targets.shape)} {batch.targets.dtype}"
        )
    counted = targets != IGNORED_TARGET
    hits = (logits.argmax(dim=-1) == targets) & counted
    nll = F.cross_entropy(
        logits.flatten(0, 1).double(), targets.flatten().long(), reduction="sum",
        ignore_index=IGNORED_TARGET,
    )  # fmt: skip
    return int(counted.sum()), int(hits.sum()), float(nll)
