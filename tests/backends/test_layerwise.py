"""Where two networks part: the first layer whose output differs is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.backends import target_of
from mpq.backends.layerwise import INPUT, OUTPUT, first_apart, traced
from mpq.backends.own_inputs import any_apart, by_worst
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


class Gated(nn.Module):
    """A norm that reads two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """The first of them times the second."""
        return self.weight * x if gate is None else self.weight * x * gate


class Chain(nn.Module):
    """A layer, a norm that reads two tensors, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gated, self.twice = nn.Linear(4, 8), Gated(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``[N, 4]``."""
        x = self.first(x)
        found: Tensor = self.twice(self.twice(self.gated(x, x.sigmoid())).relu())
        return found


def test_a_layer_is_compared_on_what_it_read_itself() -> None:
    """What came to it from elsewhere, as of a tie, is not its own; nor what it does not show."""
    one, other, x = Chain(), Chain(), torch.randn(3, 4)
    expected = traced(one, lambda: one(x))
    moved = traced(other, lambda: other(x + 0.1))
    assert "differs is 'first'" in first_apart(expected, moved, 1e-4)
    assert any_apart(one, expected, moved, by_worst(1e-4)).named == ""
    # Rows of all examples along one axis, as some runtimes have them.
    apart = {key: y[:, None] for key, y in moved.items()}
    assert any_apart(one, expected, apart, by_worst(1e-4)).named == ""

    with torch.no_grad():
        other.twice.bias.add_(1.0)
    wrong = traced(other, lambda: other(x + 0.1))
    found = any_apart(one, expected, wrong, by_worst(1e-4))

    assert "makes something else of what it reads is 'twice', by 1 (" in found.named
    assert found.seen == {"first", "twice"}


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
