"""Layers that share a parameter: a row each, against a dense Hessian, and no false alarm."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import ESTIMATORS, Calibration, Precision
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.spot_check import without_gradient
from tests.sensitivity.gradient_users import DIFFERENTIATING

CANDIDATES = tuple(map(Precision.parse, ("w2", "w4")))
TOKENS, WIDTH = 6, 3


class Tied(nn.Module):
    """A language model whose head has the embedding's parameter."""

    def __init__(self, is_tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        tensor = self.table.weight
        self.head.weight = tensor if is_tied else nn.Parameter(tensor.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(torch.tanh(self.body(self.table(ids))))
        return found


class Rounded(Tied):
    """What the tied head says is rounded, and has no gradient; the embedding has one."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, TOKENS)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        h = torch.tanh(self.body(self.table(ids)))
        found: Tensor = torch.round(self.head(h) * 4) / 4 + self.other(h)
        return found


def tokens() -> Tensor:
    """Every token several times."""
    return torch.arange(TOKENS).repeat(4)


def asked(model: nn.Module, has_ties: bool = True) -> Estimation:
    """The question of a network, whose layers know that they share a parameter or do not."""
    data = Calibration([tokens()])
    network = Network.of(model.eval(), data)
    if not has_ties:
        layers = tuple(replace(layer, weight_of=None) for layer in network.layers)
        network = replace(network, layers=layers)
    ranges = ActivationRanges.calibrate(network, data, CANDIDATES)
    return Estimation(network, data, Quantizer(ranges), CANDIDATES)


def table(on: Estimation, spec: str) -> dict[str, Any]:
    """Layer name to its losses."""
    found = ESTIMATORS.build(spec, 0).estimate(on).table
    return dict(zip(found.layers, found.values, strict=True))


def dense_hessian(model: Tied, num_changes: int) -> Tensor:
    """Of the mean divergence, in one flat change of both layers or in one for each."""
    body, weight = (x.detach().double() for x in (model.body.weight, model.table.weight))

    def logits(change: Tensor) -> Tensor:
        changes = change.reshape(num_changes, *weight.shape).expand(2, *weight.shape)
        of_table, of_head = weight + changes
        found: Tensor = torch.tanh(of_table[tokens()] @ body.T) @ of_head.T
        return found

    zeros = torch.zeros(weight.numel() * num_changes, dtype=torch.float64)
    p = logits(zeros).softmax(-1)
    hessian: Any = torch.autograd.functional.hessian(
        lambda c: -(p * logits(c).log_softmax(-1)).sum() / len(tokens()), zeros
    )
    return torch.as_tensor(hessian)


def blocks(model: Tied) -> tuple[Tensor, Tensor, Tensor]:
    """Of embedding, of head, and between them."""
    hessian, size = dense_hessian(model, 2), TOKENS * WIDTH
    return hessian[:size, :size], hessian[size:, size:], hessian[:size, size:]


@pytest.mark.parametrize("has_ties", [True, False])
def test_forms_of_tied_layers_and_their_cross_term_are_the_parameters(has_ties: bool) -> None:
    """Each row is its block's of a dense Hessian, and with the cross term they are the whole."""
    model = Tied()
    on = asked(model, has_ties)

    found = table(on, "hessian-form")

    of_table, of_head, between = blocks(model)
    whole = dense_hessian(model, 1)
    for column, candidate in enumerate(CANDIDATES):
        change = on.rounded_weight("table", candidate.weight) - on.network.weight("table")
        v = change.flatten().double()
        expected = [0.5 * float(v @ h @ v) for h in (of_table, of_head)]
        rows = [found[name][column] for name in ("table", "head")]
        np.testing.assert_allclose(rows, expected, rtol=1e-4)
        cross = float(v @ between @ v)
        assert sum(rows) + cross == pytest.approx(0.5 * float(v @ whole @ v), rel=1e-4)


@pytest.mark.parametrize("has_ties", [True, False])
@pytest.mark.parametrize(
    ("spec", "rel"),
    [
        (f"hessian-trace:num_probes={TOKENS}", 1e-4),
        ("hessian-trace:matrix=hessian,num_probes=3000", 0.15),
        ("hessian-eigenvalue:max_iterations=500,tolerance=1e-6", 5e-3),
    ],
)
def test_curvatures_of_tied_layers_are_their_blocks(spec: str, rel: float, has_ties: bool) -> None:
    """The mean or the largest eigenvalue of each layer's own block, times the squared error."""
    model = Tied()
    on = asked(model, has_ties)

    found = table(on, spec)

    for name, block in zip(("table", "head"), blocks(model), strict=False):
        values = torch.linalg.eigvalsh(block)
        curvature = float(values.mean() if "trace" in spec else values.abs().max())
        for column, candidate in enumerate(CANDIDATES):
            change = on.rounded_weight(name, candidate.weight) - on.network.weight(name)
            expected = 0.5 * curvature * float(change.double().square().sum())
            assert found[name][column] == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("spec", ["hessian-trace", "hessian-form", "hessian-eigenvalue"])
def test_a_tied_layer_costs_what_one_with_a_parameter_of_its_own_costs(spec: str) -> None:
    """The tables of a tied network and of its copy with two parameters are the same."""
    found, expected = (table(asked(Tied(is_tied)), spec) for is_tied in (True, False))

    for name, row in expected.items():
        np.testing.assert_allclose(found[name], row, rtol=1e-6)
        assert (row > 0).all()


@pytest.mark.parametrize("spec", sorted({*ESTIMATORS.names(), *DIFFERENTIATING}))
def test_no_tied_layer_is_said_to_have_no_gradient(spec: str) -> None:
    """By any estimator there is."""
    on = asked(Tied())

    found = ESTIMATORS.build(spec, 0).estimate(on)

    assert without_gradient(on, found.table) == ()


@pytest.mark.parametrize("spec", DIFFERENTIATING)
def test_a_tied_head_without_a_gradient_is_still_named(spec: str) -> None:
    """It alone, and not the embedding."""
    on = asked(Rounded())

    found = ESTIMATORS.build(spec, 0).estimate(on)

    assert without_gradient(on, found.table) == ("head",)


@pytest.mark.parametrize("has_ties", [True, False])
def test_a_search_on_a_tied_network_raises_no_alarm(has_ties: bool) -> None:
    """Its table prices the head, and the spot check finds that it holds."""
    task = mpq.Task(
        Tied().eval(), [tokens()], [tokens()],
        candidates=["w4", "w8"], rules=mpq.Rules(find_ties=has_ties),
    )  # fmt: skip

    found = mpq.search(task, {"weight_bytes": "1x:w8"}, sensitivity="hessian-form")

    loss = found.problem.loss
    assert (loss.values[loss.layers.index("head")] > 0).all()
    assert found.spot_check is not None
    assert found.spot_check.no_gradient == ()
