"""Top eigenvalues against dense eigendecompositions and a second library."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import DataError, InputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, HessianEigenvalue, HessianForm, SensitivityEstimator
from mpq.sensitivity.hessian_eigenvalue import weight_eigenvalues
from tests.sensitivity.bent import Bent

WEIGHT_2 = Precision.parse("w2")
WEIGHT_4 = Precision.parse("w4")
INPUT_4 = Precision.parse("w32a4d")
PRECISE: dict[str, Any] = {"max_iterations": 300, "tolerance": 1e-5}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: list[Any], *candidates: Precision) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.candidates = candidates
        ranges = ActivationRanges.calibrate(self.network, self.data, candidates)
        self.quantizer = Quantizer(ranges)

    def on(self) -> Estimation:
        """What estimators take."""
        return Estimation(self.network, self.data, self.quantizer, self.candidates)

    def table(self, estimator: SensitivityEstimator) -> dict[str, npt.NDArray[np.float64]]:
        """Layer name to its losses."""
        found = estimator.estimate(self.on()).table
        return dict(zip(found.layers, found.values, strict=True))

    def weight_error(self, name: str, candidate: Precision) -> float:
        """Squared."""
        weight = self.network.weight(name)
        rounded = self.quantizer.weight(name, self.network.layer_module(name), candidate.weight)
        return float((rounded - weight).double().square().sum())

    def input_errors(self, name: str, x: Tensor, candidate: Precision) -> Tensor:
        """Squared, for every example."""
        layer_module = self.network.layer_module(name)
        rounded = self.quantizer.activation(name, layer_module, x, candidate.activation)
        return (rounded - x).double().square().flatten(1).sum(dim=1)


def divergence(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """From logits to the summed KL divergence."""
    p = reference.detach().double().softmax(dim=-1)
    return lambda logits: (p * (p.log() - logits.log_softmax(dim=-1))).sum()


def top_eigenvalue(loss: Callable[[Tensor], Tensor], at: Tensor) -> float:
    """The one of largest magnitude, of a dense Hessian."""
    at = at.detach().double()
    hessian: Any = torch.autograd.functional.hessian(loss, at)
    values = torch.linalg.eigvalsh(hessian.reshape(at.numel(), at.numel()))
    return float(values[values.abs().argmax()])


def double(model: nn.Module) -> dict[str, Tensor]:
    """Its parameters in float64."""
    return {name: value.detach().double() for name, value in model.named_parameters()}


def with_weight(model: nn.Module, name: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    """From a value of one parameter to the logits."""
    own = double(model)

    def changed(value: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, {**own, name: value}, (x.double(),))
        return out

    return changed


def two_layers() -> nn.Sequential:
    """Two layers with a nonlinearity between."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def labelled() -> list[tuple[Tensor, Tensor]]:
    """Two uneven batches with targets."""
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    return [(x[:2], y[:2]), (x[2:], y[2:])]


def dense_eigenvalues(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], loss: str
) -> dict[str, float]:
    """Layer name to the top eigenvalue of its weight's block."""
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    found = {}
    for name in ("0", "2"):
        changed = with_weight(model, f"{name}.weight", x)
        weight = model.get_parameter(f"{name}.weight")
        measure = divergence(changed(weight.detach().double()))
        if loss == "cross-entropy":
            measure = lambda logits: F.cross_entropy(logits, y, reduction="sum")  # noqa: E731
        found[name] = top_eigenvalue(lambda w, f=changed, m=measure: m(f(w)), weight) / len(x)  # type: ignore[misc]
    return found


@pytest.mark.parametrize("loss", ["divergence", "cross-entropy"])
@pytest.mark.parametrize("backend", ["mpq", "pyhessian"])
def test_weights_cost_half_the_eigenvalue_times_the_squared_error(loss: str, backend: str) -> None:
    """The dense eigenvalue of largest magnitude, over batches of different sizes."""
    if backend == "pyhessian":
        pytest.importorskip("pyhessian")
    model, data = two_layers(), labelled()
    tool = Tool(model, data, WEIGHT_2, WEIGHT_4)

    found = tool.table(HessianEigenvalue(loss=loss, backend=backend, **PRECISE))

    for name, value in dense_eigenvalues(model, data, loss).items():
        errors = [tool.weight_error(name, candidate) for candidate in (WEIGHT_2, WEIGHT_4)]
        expected = [0.5 * abs(value) * error for error in errors]
        np.testing.assert_allclose(found[name], expected, rtol=5e-3)


def test_a_downward_eigenvalue_keeps_its_sign_until_the_table() -> None:
    """``log(1 + exp(-h^2))`` bends downwards near 0: a change of that size is what it can make."""
    x, y = torch.randn(5, 2), torch.zeros(5, dtype=torch.long)
    model = Bent(2, 0.1)
    tool = Tool(model, [(x, y)], WEIGHT_2, Precision.parse("bf16"))
    how = HessianEigenvalue(loss="cross-entropy", **PRECISE)

    (found,) = weight_eigenvalues(tool.on(), how)

    changed = with_weight(model, "fc.weight", x)
    expected = top_eigenvalue(lambda w: F.cross_entropy(changed(w), y), model.fc.weight)
    assert found == pytest.approx(expected, rel=5e-3)
    assert found < 0
    assert tool.table(how)["fc"][1] > 0


def test_inputs_cost_what_each_example_can_lose() -> None:
    """Half the mean over examples of eigenvalue times squared error, for both layers."""
    model, x = two_layers(), torch.randn(6, 4)
    tool = Tool(model, [x[:2], x[2:]], INPUT_4)

    found = tool.table(HessianEigenvalue(**PRECISE))

    own = double(model)
    rest = {
        "0": lambda v: torch.func.functional_call(model, own, (v,)),
        "2": lambda v: F.linear(v, own["2.weight"], own["2.bias"]),
    }
    read = {"0": x, "2": model[:2](x).detach()}
    for name, logits in rest.items():
        values = [
            top_eigenvalue(lambda v, f=logits, r=one: divergence(f(r.double()))(f(v)), one)  # type: ignore[misc]
            for one in read[name]
        ]
        errors = tool.input_errors(name, read[name], INPUT_4)
        expected = 0.5 * float((torch.tensor(values) * errors).mean())
        np.testing.assert_allclose(found[name], [expected], rtol=5e-3)


class Recurrent(nn.Module):
    """One layer that reads twice, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)  # [T, N, 3]
        for _ in range(2):
            y = torch.tanh(self.cell(y))
        out: Tensor = self.head(y.mean(dim=0))
        return out


def test_a_layer_that_is_called_twice_has_one_block() -> None:
    """Of both inputs of an example together; its axes need not come first."""
    model, x = Recurrent(), torch.randn(5, 2, 3)
    tool = Tool(model, [x], INPUT_4)
    assert tool.network.layers[0].batch_axis == 1

    found = tool.table(HessianEigenvalue(**PRECISE))["cell"]

    own = double(model)

    def logits(one: Tensor, changes: Tensor) -> Tensor:
        y = one
        for change in changes:
            y = torch.tanh(F.linear(y + change, own["cell.weight"], own["cell.bias"]))
        return F.linear(y.mean(dim=0), own["head.weight"], own["head.bias"])

    def top(one: Tensor) -> float:
        nothing = torch.zeros(2, 2, 3, dtype=torch.float64)
        loss = divergence(logits(one, nothing))
        return top_eigenvalue(lambda changes: loss(logits(one, changes)), nothing)

    read = torch.stack([x, torch.tanh(model.cell(x)).detach()], dim=1)  # [N, 2, T, 3]
    errors = tool.input_errors("cell", read[:, 0], INPUT_4)
    errors = errors + tool.input_errors("cell", read[:, 1], INPUT_4)
    values = [top(one.double()) for one in x]
    expected = 0.5 * float((torch.tensor(values) * errors).mean())
    np.testing.assert_allclose(found, [expected], rtol=5e-3)


def test_an_input_that_examples_share_is_one_block() -> None:
    """Its eigenvalue is that of all examples' loss, and it is rounded once."""

    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 3))
            self.project, self.fc = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(torch.tanh(x + self.project(self.table)))
            return out

    model, x = Positioned(), torch.randn(6, 4)
    tool = Tool(model, [x], INPUT_4)

    found = tool.table(HessianEigenvalue(**PRECISE))["project"]

    changed = with_weight(model, "table", x)
    table = model.table.detach()
    loss = divergence(changed(table.double()))
    error = float(tool.input_errors("project", table, INPUT_4).sum())
    expected = 0.5 * top_eigenvalue(lambda t: loss(changed(t)), table) * error / 6
    np.testing.assert_allclose(found, [expected], rtol=5e-3)


def test_no_rounding_changes_the_loss_by_more() -> None:
    """The quadratic form of weights alone, and of inputs alone, stays below."""
    candidates = tuple(map(Precision.parse, ("w2", "w3", "w6", "w32a3d", "w32a8d")))
    x = torch.randn(9, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 5))
    tool = Tool(model, [x[:4], x[4:]], *candidates)

    bounds, forms = tool.table(HessianEigenvalue(**PRECISE)), tool.table(HessianForm())

    for name, bound in bounds.items():
        assert (forms[name] <= bound * (1 + 1e-4)).all()
        assert (bound > 0).all()


def test_weights_that_share_a_parameter() -> None:
    """Each layer bears the eigenvalue over its own use; an unused one has 0."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.unused = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.first(x))
            self.unused(y)
            out: Tensor = self.second(y)
            return out

    model, x = Shared(), torch.randn(6, 4)
    tool = Tool(model, [x[:2], x[2:]], WEIGHT_2)

    found = tool.table(HessianEigenvalue(**PRECISE))

    def logits(first: Tensor, second: Tensor) -> Tensor:
        return torch.tanh(x.double() @ first.T) @ second.T

    w = model.first.weight.detach().double()
    loss = divergence(logits(w, w))
    blocks = {
        "first": top_eigenvalue(lambda v: loss(logits(v, w)), w),
        "second": top_eigenvalue(lambda v: loss(logits(w, v)), w),
    }
    for name, value in blocks.items():
        expected = 0.5 * value / 6 * tool.weight_error(name, WEIGHT_2)
        assert found[name][0] == pytest.approx(expected, rel=5e-3)
    assert found["unused"][0] == 0


def test_the_iteration_ends_at_its_tolerance() -> None:
    """A rough one gives another, smaller number than a precise one: it comes from below."""
    tool = Tool(two_layers(), [torch.randn(6, 4)], WEIGHT_2)

    rough = weight_eigenvalues(
        tool.on(),
        HessianEigenvalue(tolerance=0.5),
    )
    short = weight_eigenvalues(
        tool.on(),
        HessianEigenvalue(max_iterations=1),
    )
    precise = weight_eigenvalues(
        tool.on(),
        HessianEigenvalue(**PRECISE),
    )

    assert (short < rough).all()
    assert (rough < precise).all()


def test_what_cannot_be_done_is_refused() -> None:
    """Inputs by PyHessian, a loss without targets, options that make no sense."""
    pytest.importorskip("pyhessian")
    tool = Tool(two_layers(), [torch.randn(6, 4)], INPUT_4)

    with pytest.raises(InputError, match="prices weights only"):
        tool.table(HessianEigenvalue(backend="pyhessian"))
    with pytest.raises(DataError, match="needs targets"):
        tool.table(HessianEigenvalue(loss="cross-entropy"))
    with pytest.raises(InputError, match="max_iterations >= 1 and tolerance >= 0; got 0 and 0.01"):
        HessianEigenvalue(max_iterations=0)
    with pytest.raises(InputError, match="got 30 and -1"):
        HessianEigenvalue(tolerance=-1)
    with pytest.raises(InputError, match="loss is one of"):
        HessianEigenvalue(loss="kl")
    with pytest.raises(InputError, match="backend is one of"):
        HessianEigenvalue(backend="jax")
