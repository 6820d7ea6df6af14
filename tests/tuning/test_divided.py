"""Answers whose layers are divided are tuned as all others."""

from pathlib import Path

import pytest
import torch

import mpq
from mpq.quantization.grid import integer_range
from tests.workflows.divided import CANDIDATES, IN_GROUPS, Shared, examples, network
from tests.workflows.networks import batches

ALL = "all:epochs=8,share=0.5,lr=0.001"


@pytest.mark.parametrize(
    ("split", "candidates", "bits"),
    [("channels", CANDIDATES, 3.5), ("groups", IN_GROUPS, 7), ("columns:4", IN_GROUPS, 9)],
)
def test_codes_stay_within_their_own_bits(
    split: str, candidates: list[str], bits: float, tmp_path: Path
) -> None:
    """What is saved is read again: codes of few bits are checked there."""
    task = mpq.Task(
        network(), batches(6), batches(8)[6:], candidates=candidates, rounding="nearest",
        split=split, tune=ALL,
    )  # fmt: skip

    found = mpq.search(task, {"effective_bits": bits})

    assert found.provenance.tuning is not None
    formats = {n: p.weight for n, p in found.assignment.precisions.items() if p.weight.channels}
    assert formats
    assert found.provenance.tuning.is_kept
    assert found.assignment.weights is not None
    for name, weight in formats.items():
        codes = torch.from_numpy(found.assignment.weights.by_layer[name].codes).int()
        assert weight.channels is not None
        ends = torch.tensor([integer_range(x.number, x.symmetric) for x in weight.by_channel])
        own = ends[torch.from_numpy(weight.channels.cells)]
        assert ((own[..., 0] <= codes) & (codes <= own[..., 1])).all()
    found.save(tmp_path)
    assert mpq.Assignment.load(tmp_path) == found.assignment


def test_one_scale_of_several_widths_stays() -> None:
    """It is named, with the reason."""
    task = mpq.Task(
        network(), batches(6), batches(8)[6:], candidates=["w2", "w8"], rounding="nearest",
        split="columns:4", tune="scales:epochs=1,share=0.5",
    )  # fmt: skip

    found = mpq.search(task, {"effective_bits": 5})

    tied = [n for n, p in found.assignment.precisions.items() if p.weight.has_tied_scales]
    assert tied
    assert found.provenance.tuning is not None
    assert all("a factor of each width" in found.provenance.tuning.left[name] for name in tied)


def test_blocks_of_what_is_read_stay_as_they_are() -> None:
    """Weights move, and bits of blocks do not."""
    asked = mpq.Task(
        Shared(), examples(), examples(6)[4:], candidates=["w4a4dg4", "w4a8dg4"],
        rounding="nearest", split="activations:4", tune="scales:epochs=2,share=0.5",
    )  # fmt: skip

    found = mpq.search(asked, {"bit_operations": "0.7x:w4a8dg4"})

    assert found.provenance.tuning is not None
    assert any(p.activation.channels for p in found.assignment.precisions.values())
