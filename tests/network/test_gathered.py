"""Experts that an index picks out of a parameter are layers, as those called one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.backends.simulate import Simulate
from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.metrics import METRICS
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import ESTIMATORS
from mpq.sensitivity.estimation import Estimation

N, I, O, E, K = 12, 6, 4, 3, 2  # noqa: E741 - examples, inputs, outputs, experts, chosen ones
Picked = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of ``x [N, I]``, the experts ``[N, K]`` and the parameter: outputs ``[N, K, O]``."""


def spread(index: Tensor, w: Tensor) -> Tensor:
    """As ``torch.gather`` wants an index, ``[N * K, O, I]``."""
    return index.flatten()[:, None, None].expand(-1, *w.shape[1:])


def one_by_one(x: Tensor, index: Tensor, w: Tensor) -> Tensor:
    """A batched product for each of the chosen ones."""
    each = [torch.bmm(w[index[:, k]], x[:, :, None]).squeeze(-1) for k in range(K)]
    return torch.stack(each, 1)


def twice(x: Tensor, w: Tensor) -> Tensor:
    """``[N * K, I]``, a row for each of the chosen ones."""
    return x.repeat_interleave(K, 0)


STORED: dict[str, Picked] = {
    "einsum": lambda x, i, w: torch.einsum("nkoi,ni->nko", w[i], x),
    "einsum, with an ellipsis": lambda x, i, w: torch.einsum("nkoi,ni->nko", w[i, ...], x),
    "einsum, summed with gates": lambda x, i, w: (
        torch.einsum("nkoi,ni,nk->no", w[i], x, i.float())[:, None].expand(-1, K, -1)
    ),
    "einsum, summed as it is": lambda x, i, w: (
        torch.einsum("nkoi,ni->no", w[i], x)[:, None].expand(-1, K, -1)
    ),
    "einsum over pairs": lambda x, i, w: torch.einsum(
        "nkoi,nki->nko", w[i], x[:, None] * i[..., None]
    ),
    "bmm": one_by_one,
    "baddbmm": lambda x, i, w: torch.baddbmm(
        torch.ones(1, 1, O), twice(x, w)[:, None], w[i.flatten()].mT
    ).view(N, K, O),
    "matmul from the left": lambda x, i, w: (w[i] @ x[:, None, :, None]).squeeze(-1),
    "matmul from the right": lambda x, i, w: (x[:, None, None] @ w[i].transpose(2, 3)).squeeze(2),
    "matmul of several rows": lambda x, i, w: (
        torch.stack([x, -x], 1)[:, None] @ w[i].mT
    ).diff(dim=2).squeeze(2),
    "with a vector": lambda x, i, w: w[i] @ x.mean(0),
    "index_select": lambda x, i, w: torch.einsum(
        "noi,ni->no", w.index_select(0, i.flatten()), twice(x, w)
    ).view(-1, K, O),
    "gather": lambda x, i, w: torch.bmm(
        torch.gather(w, 0, spread(i, w)), twice(x, w)[..., None]
    ).view(-1, K, O),
    "take_along_dim": lambda x, i, w: torch.bmm(
        torch.take_along_dim(w, i.flatten()[:, None, None], 0), twice(x, w)[..., None]
    ).view(-1, K, O),
    "embedding": lambda x, i, w: (
        F.embedding(i, w.flatten(1)).view(-1, K, O, I) @ x[:, None, :, None]
    ).squeeze(-1),
    "negative": lambda x, i, w: torch.einsum("nkoi,ni->nko", w[i - E], x),
    "int32 and a list beside": lambda x, i, w: (
        torch.einsum("nkoi,ni->nko", w[i.int()], x) + (w[[2, 0]] @ x.mT).permute(2, 0, 1)
    ),
    "of one example alone": lambda x, i, w: (
        torch.einsum("nkoi,ni->nko", w[i], x) + F.linear(x, w[i[:1, 0]].squeeze(0))[:, None]
    ),
}  # fmt: skip
TRANSPOSED: dict[str, Picked] = {
    "einsum, outputs last": lambda x, i, w: torch.einsum("nkio,ni->nko", w[i], x),
    "matmul, outputs last": lambda x, i, w: (x[:, None, None] @ w[i]).squeeze(2),
}
NAMED: dict[str, Picked] = {
    "multiplied": lambda x, i, w: (w[i] * x[:, None, None]).sum(-1),
    "a mask": lambda x, i, w: (w[torch.tensor([True, False, True])] @ x.mT).permute(2, 0, 1),
    "a copy": lambda x, i, w: (w[i].mT.contiguous().mT @ x[:, None, :, None]).squeeze(-1),
    "rows of a part": lambda x, i, w: (
        (w[i][:, :, :O] @ x[:, None, :, None]).squeeze(-1) + w[i].sum(-1)
    ),
    "in two layouts": lambda x, i, w: (
        torch.einsum("nkoi,ni->nko", w[i], x)
        + torch.einsum("nkoi,nko->nki", w[i], torch.ones(len(x), K, O)).sum(-1, keepdim=True)
    ),
}


class Picking(nn.Module):
    """A router, and the experts that it picks for every example."""

    w: Any

    def __init__(self, picked: Picked, is_transposed: bool = False) -> None:
        super().__init__()
        self.router = nn.Linear(I, E)
        self.w = nn.Parameter(torch.randn((E, I, O) if is_transposed else (E, O, I)) * 0.5)
        self.picked = picked

    def experts(self, x: Tensor, index: Tensor) -> Tensor:
        """Outputs ``[N, K, O]``."""
        return self.picked(x, index, self.w)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, O]``."""
        scores, index = self.router(x).softmax(-1).topk(K)
        found: Tensor = (self.experts(x, index) * scores[..., None]).sum(1)
        return found


class Written(Picking):
    """The same with modules, each of which reads the rows that have picked it."""

    def __init__(self, picking: Picking, is_transposed: bool) -> None:
        super().__init__(picking.picked)
        self.router = picking.router
        parts = [part.t() if is_transposed else part for part in picking.w.detach()]
        del self.w
        self.w = nn.ModuleList(nn.Linear(I, O, bias=False) for _ in range(E))
        for layer, part in zip(self.w, parts, strict=True):
            layer.weight = nn.Parameter(part.clone().contiguous())

    def experts(self, x: Tensor, index: Tensor) -> Tensor:
        """Outputs ``[N, K, O]``."""
        found = x.new_zeros(len(x), K, O)
        for expert in range(E):
            rows, places = torch.where(index == expert)
            found = found.index_put((rows, places), self.w[expert](x[rows]))
        return found


def everything(network: Network, precision: str) -> Assignment:
    """All layers at one precision."""
    chosen = Precision.parse(precision)
    layers = [
        AssignedLayer(x.name, x.kind, x.weight_shape, chosen, None, x.is_transposed)
        for x in network.layers
    ]
    return Assignment.from_json(Assignment(tuple(layers)).to_json())


@pytest.fixture(params=[*STORED, *TRANSPOSED])
def model(request: pytest.FixtureRequest) -> Picking:
    """A network for each way of picking."""
    torch.manual_seed(0)
    name = request.param
    return Picking({**STORED, **TRANSPOSED}[name], name in TRANSPOSED).eval()


def test_an_expert_that_is_picked_is_a_layer(model: Picking) -> None:
    """Whatever picks it and reads the copies: its outputs and the state dict are the model's."""
    x = torch.randn(N, I)

    network = Network.of(model, [x])
    exact = Simulate().quantize(model, everything(network, "fp32"))
    rounded = Simulate().quantize(model, everything(network, "w3a32"))

    shapes = {layer.name: layer.weight_shape for layer in network.layers}
    assert shapes == {"router": (E, I), **{f"w.{i}": (O, I) for i in range(E)}}
    assert network.coverage is not None
    assert network.coverage.weights_outside == ()
    assert torch.allclose(exact(x), model(x), atol=1e-6)
    plain = Picking(model.picked, model.w.shape[1] == I).eval()
    plain.load_state_dict(rounded.state_dict())
    assert not torch.equal(plain.w, model.w)
    assert torch.allclose(plain(x), rounded(x), atol=1e-5)


@pytest.mark.parametrize("name", NAMED)
def test_what_reads_copies_otherwise_leaves_the_parameter_as_it_is(name: str) -> None:
    """It is named; the network computes as before."""
    torch.manual_seed(0)
    model, x = Picking(NAMED[name]).eval(), torch.randn(N, I)

    network = Network.of(model, [x])

    assert [layer.name for layer in network.layers] == ["router"]
    assert network.coverage is not None
    assert [item.name for item in network.coverage.weights_outside] == ["w"]
    assert torch.equal(network.module(x), model(x))


@pytest.mark.parametrize("estimator", ["sketch", "measured", "fisher", "weight-error"])
@pytest.mark.parametrize("name", ["einsum", "bmm of pairs", "einsum, outputs last"])
def test_a_picked_expert_has_the_numbers_of_a_linear_layer(name: str, estimator: str) -> None:
    """Layers, calls, reach and table are those of the network written with modules."""
    torch.manual_seed(0)
    pairs: Picked = lambda x, i, w: (  # noqa: E731
        torch.bmm(w[i.flatten()], twice(x, w)[..., None]).view(-1, K, O)
    )
    is_transposed = name in TRANSPOSED
    fused = Picking({**STORED, **TRANSPOSED, "bmm of pairs": pairs}[name], is_transposed).eval()
    data = [torch.randn(N, I) for _ in range(2)]
    candidates = [Precision.parse(text) for text in ("w2a8d", "w4a8d", "w8a8d")]
    tables, networks = [], []

    for model in (fused, Written(fused, is_transposed).eval()):
        network = Network.of(model, data)
        on = Estimation(network, Calibration.of(data), Quantizer(ActivationRanges({})), candidates)
        networks.append(network)
        tables.append(ESTIMATORS.build(estimator).estimate(on).table)

    assert np.allclose(tables[0].values, tables[1].values, rtol=1e-4, atol=1e-9)
    first, second = (
        [replace(layer, is_transposed=False) for layer in network.layers] for network in networks
    )
    assert first == second
    assert networks[0].reach == networks[1].reach


def test_a_search_on_picked_experts_is_no_worse_than_uniform_precisions() -> None:
    """From end to end: its bytes are those of codes, and what is saved is loaded again."""
    torch.manual_seed(0)
    model = Picking(STORED["einsum"]).eval()
    task = mpq.Task(
        model, [torch.randn(32, I)], [torch.randn(32, I)], candidates=["w2", "w4", "w8"]
    )

    result = mpq.search(task, {"weight_bytes": "1x:w4"})

    assert (
        result.comparison("result").measured.divergence
        <= result.comparison("w4a32").measured.divergence
    )
    quantized = mpq.quantize(model, result.assignment)
    assert torch.isfinite(quantized(torch.randn(5, I))).all()


def test_copies_that_nobody_reads_leave_the_parameter_as_it_is() -> None:
    """What is given to the caller is the parameter itself, in float."""

    class Giving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(I, O)
            self.w = nn.Parameter(torch.randn(E, O, I))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x) + F.linear(x, self.w[0])
            return y, self.w[torch.arange(len(x)) % E]

    model, metric = Giving().eval(), METRICS.build("outputs:terms=0")
    network = Network.of(model, [torch.randn(N, I)], metric=metric)

    assert [layer.name for layer in network.layers] == ["first"]


def test_a_use_of_copies_that_the_data_did_not_show_is_refused() -> None:
    """Otherwise the original weight would be computed with."""

    def picked(x: Tensor, index: Tensor, w: Tensor) -> Tensor:
        found = torch.einsum("nkoi,ni->nko", w[index], x)
        return found if len(x) > 1 else found + w[index].sum(-1)

    model, x = Picking(picked).eval(), torch.randn(N, I)
    quantized = Simulate().quantize(model, everything(Network.of(model, [x]), "w4a32"))

    with pytest.raises(ModelError, match="parameter 'w' is used by sum here"):
        quantized(x[:1])


def test_a_batch_without_rows_is_read_by_no_expert() -> None:
    """A detector's second stage without boxes."""
    torch.manual_seed(0)
    model, x = Picking(STORED["einsum"]).eval(), torch.randn(N, I)

    quantized = Simulate().quantize(model, everything(Network.of(model, [x]), "w4a32"))

    assert quantized(x[:0]).shape == (0, O)


def test_a_table_of_matrices_that_is_added_is_a_table_still() -> None:
    """Its rows are no matrices where no product reads them."""

    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(I, I)
            self.w = nn.Parameter(torch.randn(E, 2, I))

        def forward(self, x: Tensor) -> Tensor:
            index = torch.arange(len(x)) % E
            rows = F.embedding(index, self.w.flatten(1)).view(-1, 2, I)
            found: Tensor = self.first(x) + rows.sum(1)
            return found

    model, x = Adding().eval(), torch.randn(N, I)
    network = Network.of(model, [x])

    assert {layer.name: layer.kind for layer in network.layers} == {
        "first": "linear", "w": "embedding"
    }  # fmt: skip
    assert torch.allclose(network.module(x), model(x), atol=1e-6)


def test_experts_of_several_levels_are_picked() -> None:
    """``w[level, index]`` and ``w[:, index]`` of a parameter with four axes."""

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(I, E)
            self.w = nn.Parameter(torch.randn(2, E, I, I) * 0.5)

        def forward(self, x: Tensor) -> Tensor:
            index = self.router(x).argmax(-1)
            for level in range(2):
                x = torch.einsum("noi,ni->no", self.w[level, index], x).relu()
            found: Tensor = torch.einsum("lnoi,ni->lno", self.w[:, index], x).sum(0)
            return found

    torch.manual_seed(0)
    model, x = Levels().eval(), torch.randn(N, I)
    network = Network.of(model, [x])

    assert {layer.name for layer in network.layers} == {"router", *(f"w.{i}" for i in range(2 * E))}
    assert torch.allclose(network.module(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("multiplied", "picked from by __getitem__, and then read by mul"),
        ("a mask", "read by __getitem__, at places that a mask or data picks"),
        ("in two layouts", "used both as linear of 4x6 and as linear of 6x4 (transposed)"),
    ],
)
def test_what_stays_outside_is_named_with_a_reason(name: str, why: str) -> None:
    """The function that reads it, and how many weights it has."""
    torch.manual_seed(0)
    model = Picking(NAMED[name]).eval()

    coverage = Network.of(model, [torch.randn(N, I)]).coverage

    assert coverage is not None
    (outside,) = coverage.weights_outside
    assert outside.reason == why
    assert f"w ({E * O * I} weights) is {outside.reason}" in coverage.sentences[-1]


READS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "add": lambda x, w, a, b: F.linear(x, w + b @ a) + a.sum(),
    "mul": lambda x, w, a, b: F.linear(x, w * x.mean()) + (b @ a).sum(),
    "div": lambda x, w, a, b: F.linear(x, w / w.norm()) + w.norm() + (b @ a).sum(),
}


@pytest.mark.parametrize("name", READS)
def test_a_weight_that_is_computed_on_the_fly_is_named_with_a_reason(name: str) -> None:
    """From data, or from parameters that something else reads as well."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(I, I)
            self.w = nn.Parameter(torch.randn(O, I))
            self.a, self.b = nn.Parameter(torch.randn(2, I)), nn.Parameter(torch.randn(O, 2))

        def forward(self, x: Tensor) -> Tensor:
            return READS[name](self.first(x), self.w, self.a, self.b)

    coverage = Network.of(Adapted().eval(), [torch.randn(N, I)]).coverage

    assert coverage is not None
    reasons = {x.name: x.reason for x in coverage.weights_outside}
    assert set(reasons) == {"w", "a", "b"}
    assert all(reasons.values())


def test_complex_weights_are_named_with_a_reason() -> None:
    """A spectral network: no format holds them."""

    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(I, I)
            self.w = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.fft.irfft(torch.fft.rfft(self.first(x)) @ self.w, n=I)
            return found

    model, x = Spectral().eval(), torch.randn(N, I)
    network = Network.of(model, [x])

    assert network.coverage is not None
    (outside,) = network.coverage.weights_outside
    assert (outside.name, outside.num_bytes) == ("w", 4 * 4 * 8)
    assert "complex" in outside.reason
    assert torch.equal(network.module(x), model(x))
