"""Parameters that torch functions use are layers, with the numbers that modules would have."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.backends.simulate import Simulate
from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import ESTIMATORS
from mpq.sensitivity.estimation import Estimation

N, T, E, O = 6, 5, 8, 4  # noqa: E741 - examples, tokens, inputs, outputs


class Free(nn.Module):
    """A parameter that a function reads, between two layers."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(E, E)
        self.w = nn.Parameter(torch.randn(shape) * 0.5)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        """Logits per token."""
        return self.use(self.first(x).relu(), self.w)


def each(x: Tensor, w: Tensor) -> Tensor:
    """Every expert reads all tokens, one after the other."""
    return sum((F.linear(x, w[i]) for i in range(len(w))), torch.zeros(1))


USES: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor], dict[str, Any]]] = {
    "linear": ((O, E), F.linear, {"w": (O, E)}),
    "linear with bias": ((O, E), lambda x, w: F.linear(x, w, torch.ones(O)), {"w": (O, E)}),
    "matmul": ((E, O), lambda x, w: x @ w, {"w": (O, E)}),
    "vector as a matrix": ((O * E,), lambda x, w: F.linear(x, w.view(O, E)), {"w": (O, E)}),
    "vector from the right": ((E * O,), lambda x, w: x @ w.view(E, O), {"w": (O, E)}),
    "vector of two matrices": (
        (2 * O * E,),
        lambda x, w: F.linear(x, w[: O * E].view(O, E)) + F.linear(x, w[O * E :].view(O, E)),
        {"w.0": (O, E), "w.1": (O, E)},
    ),
    "square": ((E, E), lambda x, w: torch.matmul(x, w), {"w": (E, E)}),
    "weight first": ((O, E), lambda x, w: (w @ x.transpose(1, 2)).mT, {"w": (O, E)}),
    "addmm": (
        (E, O),
        lambda x, w: torch.addmm(torch.ones(O), x.flatten(0, 1), w).view(N, T, O),
        {"w": (O, E)},
    ),
    "einsum": ((O, E), lambda x, w: torch.einsum("nte,oe->nto", x, w), {"w": (O, E)}),
    "einsum of heads": (
        (2, E, O),
        lambda x, w: torch.einsum("...e,heo->...ho", x, w).sum(-2),
        {f"w.{i}": (O, E) for i in range(2)},
    ),
    "einsum of heads, inputs last": (
        (2, O, E),
        lambda x, w: torch.einsum("...e,hoe->...ho", x, w).sum(-2),
        {"w": (2 * O, E)},
    ),
    "experts": ((3, O, E), each, {f"w.{i}": (O, E) for i in range(3)}),
    "experts at once": (
        (3, E, O),
        lambda x, w: torch.bmm(x.flatten(0, 1).expand(3, -1, -1), w).sum(0).view(N, T, O),
        {f"w.{i}": (O, E) for i in range(3)},
    ),
    "einsum of experts, in one": (
        (3, E, O),
        lambda x, w: torch.einsum("nte,jeo->njto", x, w).softmax(-1).sum(1),
        {f"w.{i}": (O, E) for i in range(3)},
    ),
    "einsum of experts with their gates": (
        (3, E, O),
        lambda x, w: torch.einsum("ntj,nte,jeo->nto", x[..., :3].softmax(-1), x, w),
        {f"w.{i}": (O, E) for i in range(3)},
    ),
    "einsum of experts and heads": (
        (2, 3, E, O),
        lambda x, w: torch.einsum("njte,jheo->nthjo", torch.stack([x, -x], 1), w).sum((2, 3)),
        {f"w.{i}": (O, E) for i in range(6)},
    ),
    "einsum without an arrow": ((E, O), lambda x, w: torch.einsum("bce,ex", x, w), {"w": (O, E)}),
    "einsum, its choice in the middle": (
        (E, 3, O),
        lambda x, w: torch.einsum("njte,ejo->njto", x.expand(3, N, T, E).transpose(0, 1), w).sum(1),
        {},
    ),
    "einsum with a diagonal": ((E, E), lambda x, w: torch.einsum("nte,ee->nte", x, w), {}),
    "baddbmm": (
        (3, E, O),
        lambda x, w: (
            torch.baddbmm(
                torch.ones(3, 1, O), x.flatten(0, 1).expand(3, -1, -1), w, beta=2, alpha=0.5
            )
            .sum(0)
            .view(N, T, O)
        ),
        {f"w.{i}": (O, E) for i in range(3)},
    ),
    "bias of the same memory": (
        (3, O, E),
        lambda x, w: sum((F.linear(x, w[i], w[2, :, 0]) for i in range(2)), torch.zeros(1)),
        {},
    ),
    "experts by broadcasting": (
        (3, E, O),
        lambda x, w: (x.unsqueeze(1) @ w).sum(1),
        {f"w.{i}": (O, E) for i in range(3)},
    ),
    "rows of one matrix": (
        (3 * O, E),
        lambda x, w: sum((F.linear(x, part) for part in w.chunk(3)), torch.zeros(1)),
        {f"w.{i}": (O, E) for i in range(3)},
    ),
    "conv1d": (
        (E, 1, 3),
        lambda x, w: F.conv1d(x.mT, w.squeeze(1).unsqueeze(1), padding=1, groups=E).mT,
        {"w": (E, 1, 3)},
    ),
    "conv_transpose1d": (
        (E, O, 3),
        lambda x, w: F.conv_transpose1d(x.mT, w, torch.ones(O), 2, 1, 1).mT,
        {"w": (E, O, 3)},
    ),
    "inner": ((O, E), lambda x, w: torch.inner(x, w), {"w": (O, E)}),
    "conv_transpose1d of groups": (
        (E, 1, 3),
        lambda x, w: F.conv_transpose1d(x.mT, w, groups=4).mT,
        {},
    ),
    "embedding": ((7, E), lambda x, w: x + F.embedding(torch.arange(T), w), {"w": (7, E)}),
    "added": ((T, E), lambda x, w: x + w, {}),
    "in two ways": ((E, E), lambda x, w: x @ w + x @ w.t(), {}),
    "as product and sum": ((E, E), lambda x, w: x @ w + w.sum(), {}),
    "both operands": ((E, E), lambda x, w: x + (w @ w).sum(), {}),
    "changed": ((O, E), lambda x, w: F.linear(x, w.atan()), {}),
}


@pytest.fixture(params=USES)
def case(request: pytest.FixtureRequest) -> tuple[Free, Tensor, dict[str, Any]]:
    """A network, examples, and the layers that its parameter should be."""
    torch.manual_seed(0)
    shape, use, expected = USES[request.param]
    return Free(shape, use).eval(), torch.randn(N, T, E), expected


def everything(network: Network, precision: str) -> Assignment:
    """All layers at one precision."""
    chosen = Precision.parse(precision)
    layers = [
        AssignedLayer(x.name, x.kind, x.weight_shape, chosen, None, x.is_transposed)
        for x in network.layers
    ]
    return Assignment.from_json(Assignment(tuple(layers)).to_json())


def test_a_parameter_is_the_layers_that_functions_make_of_it(
    case: tuple[Free, Tensor, dict[str, Any]],
) -> None:
    """Found with their shapes, outputs as before, the model as before; else named as outside."""
    model, x, expected = case
    before, state = model(x), copy.deepcopy(model.state_dict())

    network = Network.of(model, [x])

    found = {layer.name: layer.weight_shape for layer in network.layers if layer.name != "first"}
    assert found == expected
    assert torch.allclose(network.module(x), before, atol=1e-6)
    assert network.coverage is not None
    assert [item.name for item in network.coverage.weights_outside] == ([] if found else ["w"])
    assert type(model) is Free
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_a_quantized_network_is_saved_under_the_names_of_the_model(
    case: tuple[Free, Tensor, dict[str, Any]],
) -> None:
    """Its state dict is one of the original class, with the rounded weights in it."""
    model, x, expected = case
    network = Network.of(model, [x])

    exact = Simulate().quantize(model, everything(network, "fp32"))
    rounded = Simulate().quantize(model, everything(network, "w3a32"))
    again = copy.deepcopy(model)
    again.load_state_dict(rounded.state_dict())

    assert torch.allclose(exact(x), model(x), atol=1e-6)
    assert set(rounded.state_dict()) == set(model.state_dict())
    assert torch.allclose(again(x), rounded(x), atol=1e-5)
    assert torch.equal(again.w, model.w) == (not expected)
    reloaded = Simulate().quantize(model, everything(network, "w3a32"))
    reloaded.load_state_dict(model.state_dict())
    assert torch.allclose(reloaded(x), model(x), atol=1e-5)


class Biased(nn.Module):
    """Experts of one call, whose biases are a parameter of as many axes."""

    def __init__(self, is_read_twice: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, E, O) * 0.5)
        self.b = nn.Parameter(torch.randn(3, 1, O))
        self.gate = nn.Parameter(torch.randn(3, E))
        self.is_read_twice = is_read_twice

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[N, O]``."""
        found = torch.baddbmm(self.b, x.expand(3, *x.shape), self.w)
        if self.is_read_twice:
            found = torch.baddbmm(torch.zeros(1), found, self.b.mT).expand_as(found)
        scores = F.linear(x, self.gate).softmax(-1)
        return torch.einsum("jno,nj->no", found, scores)


@pytest.mark.parametrize("is_read_twice", [False, True])
def test_a_bias_of_as_many_axes_is_no_weight(is_read_twice: bool) -> None:
    """It does not keep the experts from being layers; added, it is read besides, and stays."""
    torch.manual_seed(0)
    model, x = Biased(is_read_twice).eval(), torch.randn(N, E)

    network = Network.of(model, [x])
    exact = Simulate().quantize(model, everything(network, "fp32"))
    rounded = Simulate().quantize(model, everything(network, "w3a32"))

    assert {layer.name for layer in network.layers} == {"gate", "w.0", "w.1", "w.2"}
    assert network.coverage is not None
    assert [item.name for item in network.coverage.weights_outside] == ["b"]
    assert torch.allclose(exact(x), model(x), atol=1e-6)
    assert torch.equal(rounded.state_dict()["b"], model.b)


class Experts(nn.Module):
    """Two experts of each token, in one parameter."""

    w: Any

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.router = nn.Linear(E, 3)
        shape = (3, E, E) if is_transposed else (3, O, E)
        self.w = nn.Parameter(torch.randn(shape) * 0.5)
        self.is_transposed = is_transposed

    def apply_one(self, index: int, x: Tensor) -> Tensor:
        """One expert's product."""
        return x @ self.w[index] if self.is_transposed else F.linear(x, self.w[index])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[N, O]``."""
        scores, chosen = self.router(x).softmax(-1).topk(2)
        found = x.new_zeros(len(x), E if self.is_transposed else O)
        for index in range(3):
            rows, place = torch.where(chosen == index)
            found.index_add_(0, rows, self.apply_one(index, x[rows]) * scores[rows, place, None])
        return found


class Written(Experts):
    """The same with modules."""

    def __init__(self, fused: Experts) -> None:
        super().__init__(fused.is_transposed)
        self.router = fused.router
        del self.w
        self.w = nn.ModuleList()
        for part in fused.w.detach():
            weight = part.t() if fused.is_transposed else part
            self.w.append(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            self.w[-1].weight = nn.Parameter(weight.clone().contiguous())

    def apply_one(self, index: int, x: Tensor) -> Tensor:
        """One expert's product."""
        found: Tensor = self.w[index](x)
        return found


class AllAtOnce(nn.Module):
    """Every expert computes all tokens, in one product."""

    w: Any

    def __init__(self, how: str) -> None:
        super().__init__()
        self.router = nn.Linear(E, 3)
        self.w = nn.Parameter(torch.randn(3, E, O) * 0.5)
        self.b = nn.Parameter(torch.randn(3, 1, O))
        self.how = how

    def experts(self, x: Tensor) -> Tensor:
        """Of every expert the outputs ``[3, N, O]``."""
        if self.how == "einsum":
            return torch.einsum("nd,jdo->njo", x, self.w).transpose(0, 1) + self.b
        return torch.baddbmm(self.b, x.expand(3, *x.shape), self.w)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[N, O]``."""
        return torch.einsum("jno,nj->no", self.experts(x), self.router(x).softmax(-1))


class AllWritten(AllAtOnce):
    """The same with modules."""

    def __init__(self, fused: AllAtOnce) -> None:
        super().__init__(fused.how)
        self.router, self.b = fused.router, fused.b
        del self.w
        self.w = nn.ModuleList(nn.Linear(E, O, bias=False) for _ in range(3))
        for layer, part in zip(self.w, fused.w.detach(), strict=True):
            layer.weight = nn.Parameter(part.t().clone().contiguous())

    def experts(self, x: Tensor) -> Tensor:
        """Of every expert the outputs ``[3, N, O]``."""
        # Of one call the operand is cut, so that each reads a tensor of its own.
        parts = [x] * 3 if self.how == "einsum" else x.expand(3, *x.shape).unbind(0)
        return torch.stack([m(part) for m, part in zip(self.w, parts, strict=True)]) + self.b


@pytest.mark.parametrize("estimator", ["sketch", "measured", "fisher", "weight-error"])
@pytest.mark.parametrize("how", ["einsum", "baddbmm"])
def test_experts_of_one_product_have_the_numbers_of_linear_layers(how: str, estimator: str) -> None:
    """Layers, ties and table are those of the network written with modules."""
    torch.manual_seed(0)
    fused = AllAtOnce(how).eval()
    assert_alike(fused, AllWritten(fused).eval(), estimator)


@pytest.mark.parametrize("estimator", ["sketch", "measured", "fisher", "weight-error"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_an_expert_has_the_numbers_of_a_linear_layer(is_transposed: bool, estimator: str) -> None:
    """Layers, table and bytes are those of the network written with modules."""
    torch.manual_seed(0)
    fused = Experts(is_transposed).eval()
    assert_alike(fused, Written(fused).eval(), estimator)


def assert_alike(fused: nn.Module, written: nn.Module, estimator: str) -> None:
    """Both networks have the same layers, ties and table."""
    data = [torch.randn(24, E) for _ in range(2)]

    candidates = [Precision.parse(text) for text in ("w2a8d", "w4a8d", "w8a8d")]
    networks = [Network.of(model, data) for model in (fused, written)]
    tables = []
    for network in networks:
        on = Estimation(network, Calibration.of(data), Quantizer(ActivationRanges({})), candidates)
        tables.append(ESTIMATORS.build(estimator).estimate(on).table)

    assert tables[0].layers == tables[1].layers
    assert np.allclose(tables[0].values, tables[1].values, rtol=1e-4, atol=1e-9)
    # What the model's parameters are called, and how they lie in memory, is no number.
    first, second = (
        [replace(layer, is_transposed=False) for layer in network.layers] for network in networks
    )
    assert first == second
    assert networks[0].ties == networks[1].ties


def test_what_was_not_seen_in_the_data_is_refused() -> None:
    """A second use that no calibration example showed would compute with the original weight."""
    model = Free((E, E), lambda x, w: x @ w if len(x) > 1 else x @ w + w.sum()).eval()
    x = torch.randn(N, T, E)

    quantized = Simulate().quantize(model, everything(Network.of(model, [x]), "w4a32"))

    with pytest.raises(ModelError, match="parameter 'w' is used by sum here"):
        quantized(x[:1])


def test_a_vector_of_unlike_matrices_is_named() -> None:
    """It is no layer, and no bias either; a vector that only scales is none of both."""
    models = (
        Free((O * E + O,), lambda x, w: F.linear(x, w[: O * E].view(O, E), w[O * E :])),
        Free((E,), lambda x, w: x * w.view(1, 1, E)),
    )

    found = [Network.of(model.eval(), [torch.randn(N, T, E)]).coverage for model in models]

    assert [[x.name for x in each.weights_outside] for each in found if each] == [["w"], []]


def test_all_batches_are_looked_at() -> None:
    """A second use in the last batch leaves a parameter as it is."""
    model = Free((E, E), lambda x, w: x @ w if len(x) > 1 else x @ w + w.sum()).eval()
    x = torch.randn(N, T, E)

    network = Network.of(model, [x, x[:1]])

    assert [layer.name for layer in network.layers] == ["first"]


def test_a_plain_network_stays_as_it_is() -> None:
    """No mode is entered, and no class changes, where every weight is of a called layer."""
    model = nn.Sequential(nn.Linear(E, E), nn.ReLU(), nn.Linear(E, O)).eval()

    network = Network.of(model, Calibration.of([torch.randn(N, E)]))

    assert type(network.module) is nn.Sequential


class Router(nn.Linear):
    """Gives scores and choice, so that the module is no layer, but its product is."""

    def forward(self, x: Tensor) -> Any:
        """Softmax and logits."""
        logits = super().forward(x)
        return logits.softmax(-1), logits


class Routed(nn.Module):
    """An expert parameter, which is opened first, a router, and a convolution's weight alone."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(E, 3, bias=False)
        self.w = nn.Parameter(torch.randn(3, E, O) * 0.5)
        self.mixing = nn.Conv1d(E, E, 3, padding=2, groups=E, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, T, O]``."""
        x = F.conv1d(x.mT, self.mixing.weight, padding=1, groups=E).mT
        scores, _ = self.router(x)
        each = [x @ self.w[i] * scores[..., i, None] for i in range(3)]
        found: Tensor = each[0] + each[1] + each[2]
        return found


def test_a_second_look_opens_more_where_the_first_one_opened_some() -> None:
    """Experts, a router that gives no tensor, and a weight without a call: all are layers."""
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(N, T, E)

    network = Network.of(model, [x])
    quantized = Simulate().quantize(model, everything(network, "w3a32"))

    assert {layer.name for layer in network.layers} == {
        "mixing.weight", "router.weight", "w.0", "w.1", "w.2"
    }  # fmt: skip
    assert network.coverage is not None
    assert network.coverage.weights_outside == ()
    assert torch.allclose(network.module(x), model(x), atol=1e-6)
    assert set(quantized.state_dict()) == set(model.state_dict())
    assert not torch.allclose(quantized(x), model(x), atol=1e-2)
