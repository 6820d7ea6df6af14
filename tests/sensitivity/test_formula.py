"""Proxies as formulas: their text, their value, and what they read of a network."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.errors import InputError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.formula import Formula
from mpq.sensitivity.passes.weight_statistics import weight_statistics

CHOICES = (Precision.parse("w3"),)


def asked(model: nn.Module, data: Sequence[Any]) -> Estimation:
    """A question about a network."""
    examples = Calibration(data)
    network = Network.of(model.eval(), examples)
    return Estimation(network, examples, Quantizer(ActivationRanges({})), CHOICES)


@pytest.mark.parametrize(
    "text",
    ["sum(abs(g*w))", "mean(h)*sum(square(w))", "norm(w)/(max(a)+std(g-w))", "sum(w-(g-a))"],
)
def test_text_and_back(text: str) -> None:
    """What is read is written alike."""
    assert str(Formula.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum(abs(g*w))", 1 * 2 + 2 * 0 + 3 * 4.0),
        ("norm(w)", 20**0.5),
        ("sum(w/g)-max(a)", -2 + 4 / 3 - 7),
        ("sum(g/w)", -0.5 + 0.75),  # by 0 it is 0
        ("mean(sqrt(w))*std(a)", (2**0.5 + 2) / 3 * 0.0),
        ("sum(log(w-w)+relu(w)+a*g)", 4 + 7 * 6.0),
    ],
)
def test_values_by_hand(text: str, expected: float) -> None:
    """Of three weights, one of them 0."""
    inputs = {"w": [-2.0, 0.0, 4.0], "g": [1.0, 2.0, 3.0], "a": [7.0, 7.0, 7.0]}
    tensors = {name: torch.tensor([row]) for name, row in inputs.items()}

    assert float(Formula.parse(text).value(tensors)) == pytest.approx(expected)
    assert Formula.parse(text).importance(tensors) == pytest.approx(abs(expected))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("abs(w)", InputError, "one for the layer"),
        ("sum(w", InputError, "no formula"),
        ("sum(w**2)", InputError, "no formula"),
        ("sum(w, g)", InputError, "sum in a formula is of 1 parts; got 2"),
        ("sum(x)", UnknownNameError, "no input or operation of a formula 'x'"),
        ("__import__('os')", InputError, "no formula"),
        ("sum(w" + "+w" * 600 + ")", InputError, "no formula of at most 64"),
    ],
)
def test_what_is_no_formula(text: str, kind: type[InputError], message: str) -> None:
    """Nothing of it is run."""
    with pytest.raises(kind, match=message):
        Formula.parse(text)


class Images(nn.Module):
    """A grouped convolution, an embedding, and a head that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 6, 3, groups=2, padding=1)
        self.table, self.head = nn.Embedding(5, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[N, 6]``."""
        mean = self.conv(x).relu().mean(dim=(2, 3)) + self.table(ids)
        out: Tensor = self.head(self.head(mean).tanh())
        return out


def test_statistics_are_those_of_single_examples() -> None:
    """Gradients by autograd, one example at a time; inputs by hand."""
    model = Images().eval()
    x, ids, targets = torch.randn(5, 4, 3, 3), torch.tensor([0, 1, 1, 4, 2]), torch.arange(5)
    data = [((x[:3], ids[:3]), targets[:3]), ((x[3:], ids[3:]), targets[3:])]
    found = weight_statistics(asked(model, data), ("w", "g", "a", "h"), "targets", 0)

    for name, weight in (("conv", model.conv.weight), ("table", model.table.weight),
                         ("head", model.head.weight)):  # fmt: skip
        singles = torch.stack(
            [
                torch.autograd.grad(
                    F.cross_entropy(model(x[i : i + 1], ids[i : i + 1]), targets[i : i + 1]),
                    weight,
                )[0].flatten(1)
                for i in range(5)
            ]
        )
        assert torch.equal(found[name]["w"], weight.detach().flatten(1))
        assert torch.allclose(found[name]["g"], singles.mean(0), atol=1e-7)
        assert torch.allclose(found[name]["h"], singles.square().mean(0), atol=1e-9)
    windows = F.unfold(x, 3, padding=1).square().mean(dim=(0, 2)).sqrt()  # [4 * 9]
    by_group = windows.reshape(2, 18).repeat_interleave(3, dim=0)
    assert torch.allclose(found["conv"]["a"], by_group, atol=1e-6)
    assert torch.equal(found["table"]["a"], torch.ones(5, 6))


@pytest.mark.parametrize(
    ("formula", "proxy"),
    [("sum(abs(g*w))", "snip"), ("norm(g)", "grad-norm"), ("norm(w)", "l2-norm")],
)
def test_known_proxies_are_formulas(formula: str, proxy: str) -> None:
    """With the same drawn labels."""
    data = [((torch.randn(5, 4, 3, 3), torch.tensor([0, 1, 1, 4, 2])), torch.arange(5))]
    on = asked(Images(), data)

    by_formula, by_proxy = (
        mpq.ESTIMATORS.build(f"zero-cost:{option}", 3).estimate(on).table.values
        for option in (f"formula={formula}", f"proxy={proxy}")
    )

    assert by_formula == pytest.approx(by_proxy, rel=1e-5)


def test_a_formula_and_a_proxy_are_refused() -> None:
    """One of them would do nothing."""
    with pytest.raises(InputError, match="leave out proxy=grasp"):
        mpq.ESTIMATORS.build("zero-cost:proxy=grasp,formula=norm(w)")


@pytest.mark.parametrize("formula", ["sum(w-w)", "sum(w/(g-g))", "normalize(norm(w))"])
def test_a_formula_that_is_zero_everywhere_is_refused(formula: str) -> None:
    """By its table all assignments would lose the same: nothing."""
    on = asked(Images(), [((torch.randn(2, 4, 3, 3), torch.tensor([0, 1])), torch.arange(2))])

    with pytest.raises(InputError, match="is 0 for every layer"):
        mpq.ESTIMATORS.build(f"zero-cost:formula={formula}").estimate(on)
