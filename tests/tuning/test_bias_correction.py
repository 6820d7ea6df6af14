"""Biases that take back the mean error of layers: means, closed forms, what stays as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import Calibration
from mpq.backends.simulate import prepared, quantizer_of, transformed, with_precisions
from mpq.problem.assignment import Assignment
from mpq.tuning.bias_correction import (
    NO_BIAS,
    NO_STATISTICS,
    PARTLY,
    SHARED,
    bias_corrected,
)
from mpq.tuning.channel_means import channels_of
from tests.workflows.networks import Net, batches


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assigned(model: nn.Module, data: Any, precision: str, **options: Any) -> Assignment:
    """The network in one precision, to nearest."""
    asked = mpq.Task(model, data, candidates=[precision], rounding="nearest", **options)
    return mpq.search(asked, {"effective_bits": 32}, sensitivity="weight-error").assignment


def outputs(module: nn.Module, names: Mapping[str, int], data: list[Tensor]) -> dict[str, Tensor]:
    """What some parts give, ``[P, C]`` float64; names to the axis of channels."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name, axis=axis: found[name].append(
                y.movedim(axis, -1).flatten(0, -2).double()
            )
        )
        for name, axis in names.items()
    ]
    with torch.no_grad():
        for x in data:
            module(x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def pair(model: nn.Module, assignment: Assignment) -> tuple[nn.Module, nn.Module]:
    """The float network, folded and opened, and the quantized one."""
    plain, rest = transformed(model, assignment)
    module = with_precisions(prepared(plain, rest), rest, quantizer_of(rest))
    untuned = transformed(model, assignment)[1] if assignment.tuned is None else rest
    return prepared(model, untuned), module


@pytest.mark.parametrize("precision", ["w2", "w3a4"])
def test_every_layer_has_the_mean_output_of_the_float_network(precision: str) -> None:
    """Convolutions with BatchNorm folded in and without, groups, linear layers."""
    model, data = Net().eval(), batches(4)
    nn.init.normal_(model.norm.bias)
    nn.init.uniform_(model.norm.running_mean)  # type: ignore[arg-type]
    before = assigned(model, data, precision)

    found = bias_corrected(model, before, Calibration(data))

    axes = {"conv": 1, "grouped": 1, "hidden": -1, "head": -1}
    original, module = pair(model, found.assignment)
    means, now = (
        {name: y.mean(dim=0) for name, y in outputs(m, axes, data).items()}
        for m in (original, module)
    )
    _, uncorrected = pair(model, before)
    was = outputs(uncorrected, axes, data)
    assert found.moved == tuple(axes)
    assert found.left == {}
    for name in axes:
        torch.testing.assert_close(now[name], means[name], rtol=1e-4, atol=1e-5)
        assert (was[name].mean(dim=0) - means[name]).abs().max() > 1e-3


def test_two_linear_layers_against_the_closed_form() -> None:
    """The second for what the first gives once it is corrected, in numpy."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).eval()
    data = [torch.randn(16, 6) + 1 for _ in range(3)]
    assignment = assigned(model, data, "w2")
    rounded = mpq.quantize(model, assignment)

    found = bias_corrected(model, assignment, Calibration(data)).assignment

    mean = torch.cat(data).double().mean(dim=0).numpy()
    (w1, b1, w2, b2), (q1, _, q2, _) = (
        [p.detach().double().numpy() for p in m.parameters()] for m in (model, rounded)
    )
    corrected = b1 - (q1 - w1) @ mean
    second = b2 - (q2 - w2) @ (w1 @ mean + b1)  # the mean of what it reads is that of float again
    assert found.tuned is not None
    by_name = {name: vector.tuned for name, vector in found.tuned.by_name.items()}
    np.testing.assert_allclose(by_name["0.bias"], corrected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_name["1.bias"], second, rtol=1e-4, atol=1e-5)


class Preactivated(nn.Module):
    """BatchNorm that no convolution feeds alone, so that it is not folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        y = x + self.second(torch.relu(self.norm(x)))
        found: Tensor = self.head(self.plain(y.relu()).mean((2, 3)))
        return found


def test_batch_norm_that_is_not_folded_is_estimated_again() -> None:
    """Its outputs have the float network's means and variances, by weight and bias alone."""
    model, data = Preactivated().eval(), batches(4)
    for values in (model.norm.weight, model.norm.bias, model.norm.running_mean):
        nn.init.uniform_(values, 0.5, 2.0)  # type: ignore[arg-type]
    nn.init.uniform_(model.norm.running_var, 0.01, 0.1)  # type: ignore[arg-type]
    model.norm.eps = 1e-9  # the variance is the definition's without it
    before = assigned(model, data, "w2")

    found = bias_corrected(model, before, Calibration(data))

    original, module = pair(model, found.assignment)
    was, now = (outputs(m, {"norm": 1}, data)["norm"] for m in (original, module))
    torch.testing.assert_close(now.mean(dim=0), was.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(now.var(dim=0), was.var(dim=0), rtol=1e-3, atol=1e-5)
    assert found.moved == ("norm", "second", "head")
    assert found.left == {"first": NO_BIAS, "plain": NO_STATISTICS}
    assert found.assignment.tuned is not None
    names = {"norm.weight", "norm.bias", "second.bias", "head.bias"}
    assert found.assignment.tuned.by_name.keys() == names


class Odd(nn.Module):
    """A layer that is called twice, one that is skipped at times, two that share a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.bias = self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x).relu())
        if len(x) == 8:
            x = self.rare(x)
        found: Tensor = self.other(self.one(x).relu())
        return found


def test_biases_of_several_calls_and_layers_stay() -> None:
    """Each with its reason; and then there is no file of biases."""
    model, data = Odd().eval(), [torch.randn(8, 4), torch.randn(8, 4), torch.randn(7, 4)]
    assignment = assigned(model, data, "w2", held_out=[torch.randn(8, 4)])

    found = bias_corrected(model, assignment, Calibration(data))

    assert found.moved == ()
    assert found.left == {"one": SHARED, "other": SHARED, "twice": PARTLY, "rare": PARTLY}
    assert found.assignment == assignment


def test_nothing_moves_where_nothing_is_quantized() -> None:
    """Not by rounding errors either."""
    model, data = Preactivated().eval(), batches(2)
    assignment = assigned(model, data, "w32")

    found = bias_corrected(model, assignment, Calibration(data)).assignment

    assert found.tuned is None


def test_the_model_stays_as_it_is_and_the_answer_is_repeated(tmp_path: Path) -> None:
    """Numbers, hooks, mode; what is written beside the assignment gives the same network."""
    model, data = Net().eval(), batches(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assignment = assigned(model, data, "w2")

    found = bias_corrected(model, assignment, Calibration(data)).assignment

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    found.save(tmp_path)
    again = mpq.Assignment.load(tmp_path / "assignment.json")
    assert again == found
    with torch.no_grad():
        first, other = (mpq.quantize(model, a)(data[0]) for a in (found, again))
        plain = mpq.quantize(model, assignment)(data[0])
    assert torch.equal(first, other)
    assert not torch.equal(first, plain)


def test_a_second_correction_changes_little() -> None:
    """It compares with the network as it came, whose mean outputs the first has given back."""
    model, data = Net().eval(), batches(4)
    assignment = assigned(model, data, "w2")
    once = bias_corrected(model, assignment, Calibration(data)).assignment

    twice = bias_corrected(model, once, Calibration(data)).assignment

    assert once.tuned is not None
    assert twice.tuned is not None
    for name, vector in once.tuned.by_name.items():
        again = twice.tuned.by_name[name]
        np.testing.assert_array_equal(again.original, vector.original)
        np.testing.assert_allclose(again.tuned, vector.tuned, rtol=1e-4, atol=1e-5)


def test_the_same_data_gives_the_same_biases() -> None:
    """To the last bit."""
    model, data = Net().eval(), batches(4)
    assignment = assigned(model, data, "w2a8")

    first, again = (bias_corrected(model, assignment, Calibration(data)) for _ in range(2))

    assert first.assignment == again.assignment


def test_layers_that_read_one_tensor_are_corrected_in_one_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys, queries and values, say: they do not feed each other."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x.tanh()
            found: Tensor = self.c(self.a(x) * self.b(x))
            return found

    read: list[list[str]] = []

    def recording(module: nn.Module, names: Any, data: Any, **options: Any) -> Any:
        read.append(list(names))
        return channels_of(module, names, data, **options)

    monkeypatch.setattr("mpq.tuning.bias_correction.channels_of", recording)
    model, data = Fork().eval(), [torch.randn(8, 4) for _ in range(2)]

    bias_corrected(model, assigned(model, data, "w2"), Calibration(data))

    assert read == [["a", "b", "c"], ["a", "b"], ["c"]]
