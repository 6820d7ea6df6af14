"""A layer is compared on what it read in the other network: its channels, calls and shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.backends.last_digits import LastDigits
from mpq.backends.layerwise import INPUT, OUTPUT, first_apart, traced
from mpq.backends.own_inputs import CODES, InputCodes, any_apart, by_channels, by_worst, codes_of
from mpq.network.examples import Batch
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange


def seen_of(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What its parts read and give."""
    return traced(module, lambda: module(x))


def test_a_position_may_be_a_code_off_and_a_channel_may_not() -> None:
    """A tie moves all channels of a position; a wrong bias one channel of all positions."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(5, 8)
    judge = by_channels(1e-4, {"0": InputCodes(1 / 128, 0.0)})
    expected, code = seen_of(model, x), float(x.abs().max() / 128)
    largest = float(model.get_parameter("0.weight").detach().abs().max())

    def named(moved: Tensor) -> str:
        found = expected | {OUTPUT + "0": expected[OUTPUT + "0"] + moved}
        return any_apart(model, expected, found, judge).named

    at = torch.zeros(5, 4)
    position, channel = at.clone(), at.clone()
    position[2], channel[:, 1] = 100.0, 1.01 * CODES * code * largest + 1e-3

    assert named(position) == ""
    assert named(0.99 * CODES * code * largest + at) == ""
    assert "is '0', by " in named(channel)
    assert "in the median of a channel" in named(channel)
    assert "by nan" in named(at + torch.nan)


@pytest.mark.parametrize(
    ("part", "shape", "axis"),
    [
        (nn.Conv2d(3, 6, 1), (2, 3, 9, 9), 1),
        (nn.Conv2d(3, 6, 1), (3, 9, 9), 0),
        (nn.ConvTranspose2d(3, 6, 1), (2, 3, 9, 9), 1),
        (nn.BatchNorm2d(3), (2, 3, 9, 9), 1),
        (nn.GroupNorm(1, 3), (2, 3, 9, 9), 1),
        (nn.LayerNorm(9), (2, 3, 9, 9), 3),
    ],
)
def test_channels_are_where_a_module_has_them(
    part: nn.Module, shape: tuple[int, ...], axis: int
) -> None:
    """Not last in images; examples may be missing."""
    model = nn.Sequential(part).eval()
    expected = seen_of(model, torch.randn(shape))
    wrong = expected[OUTPUT + "0"].clone()
    wrong.select(axis, 2).add_(1.0)

    found = any_apart(model, expected, expected | {OUTPUT + "0": wrong}, by_channels(1e-4, {}))

    assert "is '0', by 1 in the median of a channel" in found.named


def test_what_has_another_shape_is_not_looked_at() -> None:
    """As of convolutions whose channels are last in the other network."""
    model = nn.Sequential(nn.Conv1d(3, 6, 1)).eval()
    expected = seen_of(model, torch.randn(2, 3, 9))
    last = {key: x.movedim(1, -1) for key, x in expected.items()}

    found = any_apart(model, expected, last, by_worst(1e-4))

    assert (found.named, found.seen) == ("", frozenset())


def test_later_calls_are_looked_at_where_an_earlier_one_is_not_told() -> None:
    """One end of the first is missing; the second one's output is another one."""
    torch.manual_seed(0)
    part = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": part})
    x = torch.randn(2, 4)
    expected = traced(model, lambda: part(part(x)))
    found = dict(expected)
    del found[OUTPUT + "a"]
    found[OUTPUT + "a (call 2)"] = expected[OUTPUT + "a (call 2)"] + 1

    assert "reads is 'a (call 2)', by 1 (" in any_apart(model, expected, found, by_worst(0)).named


def test_of_an_embedding_the_output_is_compared() -> None:
    """It reads ids, of which nothing is told."""
    model, ids = nn.Sequential(nn.Embedding(5, 3)).eval(), torch.tensor([[1, 4]])
    expected = seen_of(model, ids)
    wrong = {OUTPUT + "0": expected[OUTPUT + "0"] + 1}

    right = any_apart(model, expected, expected, by_worst(1e-4))

    assert (right.named, right.seen) == ("", frozenset({"0"}))
    assert "is '0', by 1" in any_apart(model, expected, wrong, by_worst(1e-4)).named


class Experts(nn.Module):
    """Every row goes to the expert that a router picks, also where none does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 4]``; an expert without rows is called all the same, but the last one."""
        picked, found = self.router(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = picked == index
            if index < 2 or rows.any():
                found[rows] = expert(x[rows])
        return found


@torch.no_grad()
def test_experts_without_rows_are_compared() -> None:
    """Nothing is not apart, whatever is asked."""
    model, x = Experts().eval(), torch.randn(12, 4)
    picked = model.router(x).argmax(-1)
    few = seen_of(model, x[picked == 2])
    assert not few[OUTPUT + "experts.0"].numel()

    assert first_apart(few, few, 1e-4) == ""
    assert any_apart(model, few, few, by_worst(1e-4)).named == ""
    assert any_apart(model, few, few, by_channels(1e-4, {})).named == ""


@torch.no_grad()
def test_rows_that_noise_sends_elsewhere_are_not_held_against_a_runtime() -> None:
    """No difference is known where shapes differ; an expert that only noise reaches is left out."""
    model, x = Experts().eval(), torch.randn(12, 4)
    x = x[model.router(x).argmax(-1) != 2]
    expected = seen_of(model, x)
    assert OUTPUT + "experts.2" not in expected
    names, batch = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)], Batch((x,))
    digits = LastDigits(model, names, 5.0, [batch], [model(x)], lambda outputs, _: outputs)

    found = digits.accepted_of_layers(batch, expected)

    assert found.keys() == expected.keys()
    assert found[INPUT + "experts.0"] == float("inf")
    assert 0 < found[OUTPUT + "router"] < float("inf")
    elsewhere = expected | {INPUT + "experts.0": x[:1], OUTPUT + "experts.0": x[:1]}
    assert "'experts.0', by its shape" in first_apart(expected, elsewhere, 1e-4)
    assert first_apart(expected, elsewhere, 1e-4, found) == ""


@pytest.mark.parametrize(
    ("precision", "numerics", "step"),
    [
        ("w4a8", Numerics(), 3 / 128),
        ("w4a4", Numerics(), 3 / 8),
        ("w4afp8", Numerics(), 3 / 8),
        ("w4", Numerics(), None),
        ("w4", Numerics(float_inputs="llama.cpp"), 2 / 128),
    ],
)
def test_codes_of_inputs_are_those_of_their_formats(
    precision: str, numerics: Numerics, step: float | None
) -> None:
    """Of the largest number of the range, else of what is read; nothing of inputs as they come."""
    parsed = Precision.parse(precision)
    known: Any = None if parsed.activation.is_exact else ActivationRange(-3.0, 2.0)
    layer = AssignedLayer("a", "linear", (4, 8), parsed, known)

    found = codes_of(Assignment((layer,), numerics=numerics))

    assert found.keys() == (set() if step is None else {"a"})
    if step is not None:
        assert found["a"].step(torch.tensor([1.0, -2.0])) == step


class Router(nn.Linear):
    """Gives scores, and which is the best."""

    def forward(self, x: Tensor) -> Any:
        """See above."""
        scores = super().forward(x)
        return scores, scores.argmax(-1)


class Scaled(nn.Linear):
    """Needs a second tensor."""

    def forward(self, x: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        """See above."""
        return super().forward(x) * scale


def test_a_layer_may_give_several_tensors_and_is_left_out_if_it_reads_several() -> None:
    """The first that it gives is compared; what makes its output of two tensors cannot be."""
    torch.manual_seed(0)
    parts, x = nn.ModuleDict({"router": Router(4, 3), "scaled": Scaled(4, 4)}), torch.randn(5, 4)
    expected = traced(parts, lambda: parts["router"](parts["scaled"](x, torch.ones(4))))
    wrong = {key: y + 1 if key.startswith(OUTPUT) else y for key, y in expected.items()}

    right = any_apart(parts, expected, expected, by_worst(1e-4))

    assert (right.named, right.seen) == ("", frozenset({"router"}))
    assert "is 'router', by 1 (" in any_apart(parts, expected, wrong, by_worst(1e-4)).named
