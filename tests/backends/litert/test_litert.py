"""The target ``litert``: our codes in its files, and what its interpreter makes of them."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from mpq.backends.litert.capabilities import CONTAINERS
from mpq.backends.litert.target import LiteRt
from mpq.backends.shipping import ship
from mpq.errors import InputError, MissingDependencyError, PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made


@pytest.mark.parametrize(
    ("kind", "mix"),
    [
        (Images, ("w2", "w3", "w4", "fp32", "w6", "w8", "w4t")),
        (Words, ("w4", "w8", "w2", "w7", "w5")),
    ],
)
def test_litert_computes_what_the_simulation_does(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """In a process of its own: weights to the bit, outputs to float32's last digits."""
    pytest.importorskip("litert_torch")
    model = made(kind)
    found = in_turn(model, LiteRt(), mix)

    check = ship(LiteRt(), "litert", found, tmp_path / "out", model, examples(model))

    quantized = [x for x in found.layers if x.precision != ORIGINAL]
    assert check.num_layers == len(quantized)
    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread
    expected = {CONTAINERS[x.precision.weight.number.bits] for x in quantized}
    assert set(check.kinds) == {f"INT{bits}" for bits in expected}


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("w4g32", "scales are of a channel"),
        ("w8z", "symmetric integers"),
        ("w8a8", "read floating point"),
        ("w8a8d", "read floating point"),
        ("wfp8a32", "symmetric integers"),
    ],
)
def test_what_litert_cannot_hold_is_refused(precision: str, why: str) -> None:
    """With the layer's name and the reason."""
    layer = AssignedLayer("fc", "linear", (8, 64), Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'fc' at .*{why}"):
        LiteRt().check([layer])


def test_bytes_are_those_of_the_containers() -> None:
    """3 bits take 4; every channel 12 bytes more."""
    layer = AssignedLayer("fc", "linear", (8, 64), Precision.parse("w3"))

    assert LiteRt().stored_bits(layer, layer.precision) == 8 * 64 * 4 + 8 * 96


def test_no_example_at_a_time_is_refused() -> None:
    """A batch has one at least."""
    with pytest.raises(InputError, match="batch_size is 1 or more"):
        LiteRt(batch_size=0)


def test_a_runtime_that_is_not_there_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    found = in_turn(model, LiteRt(), ("w4",))

    with pytest.raises(MissingDependencyError, match=r"pip install 'mpq\[litert\]'"):
        ship(LiteRt(), "litert", found, tmp_path / "out", model, [torch.randn(4, 8)])
    assert not (tmp_path / "out").exists()
