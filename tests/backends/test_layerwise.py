"""Where two networks part: the first layer whose output differs is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpq.backends import target_of
from mpq.backends.layerwise import INPUT, OUTPUT, first_apart, traced
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped
from mpq.errors import ModelError
from tests.backends.llamas import examples, in_turn, llama


def network() -> nn.Sequential:
    """Three layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_the_first_layer_that_differs_is_named() -> None:
    """With whether it reads the same; without a difference there is none."""
    one, other, x = network(), network(), torch.randn(3, 4)
    expected = traced(one, lambda: one(x))
    assert [key for key in expected if key.startswith(OUTPUT)] == [
        "output:0",
        "output:1",
        "output:2",
    ]
    assert torch.equal(expected[INPUT + "2"], expected[OUTPUT + "1"])
    assert first_apart(expected, traced(other, lambda: other(x)), 1e-4) == ""

    nn.init.constant_(dict(other.named_parameters())["2.bias"], 100.0)
    last = first_apart(expected, traced(other, lambda: other(x)), 1e-4)
    nn.init.constant_(dict(other.named_parameters())["0.weight"], torch.nan)
    first = first_apart(expected, traced(other, lambda: other(x)), 1e-4)

    assert "differs is '2', by " in last
    assert "it reads the same" in last
    assert "differs is '0', by nan" in first
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in one)


def test_an_input_that_is_not_known_is_not_judged() -> None:
    """Of token ids no number is kept, and some runtimes tell outputs alone."""
    expected = {INPUT + "0": torch.ones(2), OUTPUT + "0": torch.tensor([0.0, 1.0])}
    other = {OUTPUT + "0": torch.tensor([0.0, 2.0])}

    assert first_apart(expected, other, 1e-4).endswith("(standard deviation 0.707)")
    assert first_apart(expected, expected | other, 1e-4).endswith("; it reads the same")
    assert first_apart(other, expected | other, 1e-4) == ""


@pytest.mark.parametrize("name", ["compressed-tensors", "torchao"])
def test_an_export_names_the_first_layer_that_differs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Rounded inputs and a norm that is read with another epsilon; one in the runtime's process."""
    if name != "compressed-tensors":
        request.getfixturevalue("same_process")
    pytest.importorskip({"compressed-tensors": "compressed_tensors"}.get(name, name))
    pytest.importorskip("transformers", minversion="5")
    model, target = llama(), target_of(name)
    write: Any = type(target).write

    def with_another_epsilon(self: Any, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 1e-2}))

    monkeypatch.setattr(type(target), "write", with_another_epsilon)

    with pytest.raises(ModelError, match=r"reads is 'model.layers.0.input_layernorm', by"):
        ship(
            target,
            name,
            in_turn(model, target, ("w8a8d", "w4")),
            tmp_path / "out",
            model,
            examples(),
        )

    assert not list(tmp_path.iterdir())
