"""What the processes of ``torchrun`` find, for ``test_ranks.py``: ``python ranked.py OUT``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import mpq
from mpq._support.ranks import launched
from mpq.errors import MpqError
from mpq.sensitivity.passes.second_moments import second_moments
from mpq.workflows.measured_share import MeasuredShare
from mpq.workflows.setup import Prepared
from mpq.workflows.shared_measurements import Asked
from mpq.workflows.sums import Sums
from tests.workflows.networks import Net, batches

LIMIT = {"effective_bits": 4.0}
ESTIMATORS = ("sketch", "measured", "auto")


class Stopped(Net):
    """Nothing can be differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def images() -> list[Tensor]:
    """Seven batches, of which one and three quarters are held out."""
    return batches(7)


def task(net: type[nn.Module] = Net, **options: Any) -> mpq.Task:
    torch.manual_seed(0)
    candidates = ["w2a8", "w4a8c", "w8a8"]
    return mpq.Task(net().eval(), images, **{"candidates": candidates, **options})


def found(workers: str | None, cache: str) -> dict[str, Any]:
    """All that processes share: ranges, second moments (in codes), and estimates."""
    prepared = Prepared.of(task(rounding="gptq", workers=workers))
    known = prepared.calibrated.ranges.known
    answers: dict[str, Any] = {
        "ranges": {str(cell): (r.low, r.high, *r.extras) for cell, r in known.items()},
        "moments": dict(second_moments(prepared.asked).values),
    }
    nearest: dict[str, Any] = {"rounding": "nearest", "workers": workers}
    searches: dict[str, tuple[mpq.Task, str]] = {
        **{name: (task(**nearest), name) for name in ESTIMATORS},
        "no gradients": (task(Stopped, **nearest), "auto"),
        "codes": (task(rounding="gptq", workers=workers), "sketch"),
        "again": (task(rounding="gptq", workers=workers, sequential_rounding=True), "sketch"),
        "kept": (task(**nearest, cache=cache), "sketch"),
        "kept again": (task(**nearest, cache=cache), "sketch"),
    }
    for name, (asked, estimator) in searches.items():
        result = mpq.search(asked, LIMIT, sensitivity=estimator)
        answers[name] = {
            "table": result.problem.loss.values.tolist(),
            "assignment": [str(layer) for layer in result.assignment.layers],
            "measured": result.comparison("result").measured,
        }
    return answers


@contextmanager
def counted() -> Iterator[list[str]]:
    """By which name examples were measured on, for every share of a measurement."""
    asked: list[str] = []
    measure = MeasuredShare.__call__

    def counting(share: MeasuredShare, question: Asked) -> Sums | MpqError:
        asked.append(question[0])
        return measure(share, question)

    with patch.object(MeasuredShare, "__call__", counting):
        yield asked


def main() -> None:
    """Every rank writes what it found."""
    folder = Path(sys.argv[1])
    with launched() as ranks, counted() as asked:
        answers = found("torchrun", str(folder / "kept"))
        torch.save({**answers, "asked": asked}, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main()
