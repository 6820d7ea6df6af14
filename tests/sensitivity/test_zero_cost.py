"""Zero-cost proxies against dense gradients, Hessians and closed forms."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from mpq.errors import DataError, InputError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.metric import SquaredError
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, WeightError, ZeroCost

CHOICES = (Precision.parse("w3"),)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def importances(
    proxy: str, model: nn.Module, data: Sequence[Any], labels: str = "targets"
) -> dict[str, float]:
    """Layer name to its cost over its rounding error."""
    examples, quantizer = Calibration(data), Quantizer(ActivationRanges({}))
    network = Network.of(model.eval(), examples)
    tables = [
        estimator.estimate(Estimation(network, examples, quantizer, CHOICES)).table
        for estimator in (ZeroCost(proxy, labels), WeightError())
    ]
    assert (tables[0].name, tables[0].unit) == ("zero-cost", "relative")
    ratio = (tables[0].values / tables[1].values)[:, 0]
    return dict(zip(tables[0].layers, ratio.tolist(), strict=True))


class Small(nn.Module):
    """Few enough weights for a dense Hessian; the first layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.fc(self.fc(x).tanh()).tanh())
        return out


class Problem:
    """The small network with labelled examples, and its mean loss in float64."""

    def __init__(self) -> None:
        self.model = Small().eval()
        self.x, self.targets = torch.randn(7, 3), torch.randint(0, 2, (7,))
        self.batches = [(self.x[:4], self.targets[:4]), (self.x[4:], self.targets[4:])]
        named = self.model.named_parameters()
        self.weights = {n: p.detach().double() for n, p in named if n.endswith("weight")}

    def loss(self, weights: dict[str, Tensor]) -> Tensor:
        biases = {n: p.detach().double() for n, p in self.model.named_parameters()}
        outputs = functional_call(self.model, biases | weights, (self.x.double(),))
        return F.cross_entropy(outputs, self.targets)

    def gradients(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = grad(self.loss)(self.weights)
        return found


FROM_GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "snip": lambda g, w: (g * w).abs().sum(),
    "plain": lambda g, w: (g * w).sum().abs(),
    "grad-norm": lambda g, w: g.square().sum().sqrt(),
    "l2-norm": lambda g, w: w.square().sum().sqrt(),
}


@pytest.mark.parametrize("proxy", FROM_GRADIENT)
def test_criteria_of_gradient_and_weight(proxy: str) -> None:
    """With the gradient of the mean loss over all batches, by ``torch.func``."""
    problem = Problem()

    found = importances(proxy, problem.model, problem.batches)

    gradients = problem.gradients()
    for name in ("fc", "head"):
        g, w = gradients[f"{name}.weight"], problem.weights[f"{name}.weight"]
        assert found[name] == pytest.approx(float(FROM_GRADIENT[proxy](g, w)), rel=1e-4)


def test_grasp_has_the_hessian_of_all_layers() -> None:
    """``W * (H g)`` with the dense Hessian over both layers' weights."""
    problem = Problem()

    found = importances("grasp", problem.model, problem.batches)

    gradients, blocks = problem.gradients(), jacrev(jacrev(problem.loss))(problem.weights)
    for name in problem.weights:
        product = sum(
            torch.einsum("abcd,cd->ab", blocks[name][other], gradients[other])
            for other in problem.weights
        )
        expected = float((product * problem.weights[name]).abs().sum())
        assert found[name.removesuffix(".weight")] == pytest.approx(expected, rel=1e-4)


def test_grasp_goes_through_fused_attention() -> None:
    """The fused kernels have no second derivative; the plain one is used."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.project(x)[:, None].chunk(3, dim=-1)
            mixed = F.scaled_dot_product_attention(q, k, v)
            out: Tensor = self.head(mixed[:, 0].mean(dim=1))
            return out

    found = importances("grasp", Attention(), [torch.randn(6, 5, 4)], "sampled")

    assert min(found.values()) > 0


class Images(nn.Module):
    """A convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).tanh().mean(dim=(2, 3)))
        return out


def test_fisher_is_the_saliency_of_channels() -> None:
    """``1/(2N) sum_n sum_k (sum_places a g)^2``, by a loop over examples."""
    model, x, targets = Images().eval(), torch.randn(5, 2, 5, 5), torch.randint(0, 3, (5,))

    found = importances("fisher", model, [(x[:3], targets[:3]), (x[3:], targets[3:])])

    conv, head = 0.0, 0.0
    for one, target in zip(x.split(1), targets.split(1), strict=True):
        a = model.conv(one)
        z = model.head(a.tanh().mean(dim=(2, 3)))
        on_a, on_z = torch.autograd.grad(F.cross_entropy(z, target), (a, z))
        conv += float((a * on_a).sum(dim=(2, 3)).square().sum().detach())
        head += float((z * on_z).square().sum().detach())
    assert found == pytest.approx({"conv": conv / 10, "head": head / 10}, rel=1e-4)


def test_fisher_adds_up_positions() -> None:
    """A channel of a sequence is a number per position."""
    model, x, targets = nn.Linear(4, 3).eval(), torch.randn(5, 6, 4), torch.randint(0, 3, (5, 6))

    found = importances("fisher", model, [(x, targets)])[""]

    y = model(x).detach()
    g = (y.softmax(dim=-1) - F.one_hot(targets, 3)) / 6
    expected = 0.5 * (y * g).sum(dim=1).square().sum(dim=1).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_synflow_of_a_linear_chain() -> None:
    """Without biases every layer has the same flow: the sum of outputs of absolute weights."""
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    x = torch.randn(6, 4)

    found = importances("synflow", model, [x], "sampled")

    first, second = (model.get_parameter(f"{i}.weight").detach().abs() for i in (0, 2))
    flow = 6 * float((second @ first).sum())
    assert found == pytest.approx({"0": flow, "2": flow}, rel=1e-5)


def test_synflow_reads_ids_as_they_are() -> None:
    """Rows of an embedding that are not read have no flow."""
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3, bias=False))
    ids = torch.tensor([[1, 1, 2]])

    found = importances("synflow", model, [ids], "sampled")

    rows, weight = (model.get_parameter(f"{i}.weight").detach().abs() for i in (0, 1))
    flow = float((rows[[1, 1, 2]] @ weight.T).sum())
    assert found == pytest.approx({"0": flow, "1": flow}, rel=1e-5)


def test_synflow_does_not_overflow() -> None:
    """Seventy layers of absolute weights multiply a one beyond what float32 holds."""
    layers = [nn.Linear(64, 64, bias=False) for _ in range(70)]

    found = importances("synflow", nn.Sequential(*layers, nn.Linear(64, 2)), [torch.randn(2, 64)])

    flows = np.array(list(found.values()))
    assert flows.max() > 3.4e38
    assert np.isfinite(flows).all()


def test_unused_layers_cost_nothing() -> None:
    """No gradient reaches them."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.pooler = nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.pooler(x)
            out: Tensor = self.fc(x)
            return out

    for proxy in ("snip", "plain", "grad-norm", "grasp", "fisher", "synflow"):
        found = importances(proxy, Unused(), [torch.randn(5, 4)], "sampled")
        assert found["pooler"] == 0
        assert found["fc"] > 0


def test_layers_that_share_a_parameter_have_the_gradient_of_their_own_use() -> None:
    """As a copy of the network with two parameters: an embedding whose weight is the output's."""

    class Tied(nn.Module):
        def __init__(self, is_tied: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            tensor = self.table.weight
            self.head.weight = tensor if is_tied else nn.Parameter(tensor.detach().clone())

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.table(ids))
            return out

    data = [(torch.randint(0, 7, (5, 3)), torch.randint(0, 7, (5, 3)))]

    for proxy in ("snip", "plain", "grad-norm", "grasp", "synflow"):
        found, expected = (importances(proxy, Tied(is_tied), data) for is_tied in (True, False))
        assert found == pytest.approx(expected)


def test_model_is_left_as_found() -> None:
    """Whatever the proxy: weights, flags, gradients, hooks."""
    model, x = Images().eval(), torch.randn(4, 2, 5, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for proxy in ("snip", "synflow", "fisher", "grasp", "grad-norm", "plain", "l2-norm"):
        importances(proxy, model, [x], "sampled")

    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_other_proxies_are_refused() -> None:
    """With those that there are."""
    with pytest.raises(UnknownNameError, match="no proxy 'snap'.*did you mean 'snip'"):
        ZeroCost("snap")


def test_targets_are_needed_where_asked_for() -> None:
    """Without any, the error says so."""
    with pytest.raises(DataError, match="labels=targets, unlike labels=sampled, needs targets"):
        importances("snip", nn.Linear(4, 3), [torch.randn(2, 4)])


def test_grasp_needs_classes() -> None:
    """A regression has no cross-entropy to differentiate twice."""
    data = Calibration([torch.randn(2, 4)])
    network = Network.of(nn.Linear(4, 3).eval(), data, metric=SquaredError())

    with pytest.raises(InputError, match="the metric 'squared-error' has none"):
        ZeroCost("grasp").estimate(
            Estimation(network, data, Quantizer(ActivationRanges({})), CHOICES)
        )
