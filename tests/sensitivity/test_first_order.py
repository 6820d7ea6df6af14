"""First-order changes against loops over examples."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import DataError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, FirstOrder

CHOICES = tuple(map(Precision.parse, ("w2", "w32a3d", "w3a4d", "fp32")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: list[Any]) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.quantizer = Quantizer(ActivationRanges.calibrate(self.network, self.data, CHOICES))

    def losses(self, estimator: FirstOrder) -> dict[str, list[float]]:
        """Layer name to its losses."""
        found = estimator.estimate(Estimation(self.network, self.data, self.quantizer, CHOICES))
        assert (found.table.name, found.table.unit) == ("first-order", "nats")
        return dict(zip(found.table.layers, found.table.values.tolist(), strict=True))


class Recorder(nn.Module):
    """Two layers, the first called twice, that keeps what each call reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.read: list[tuple[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.read.clear()
        x = self.fc(self._kept("fc", x)).tanh()
        x = self.fc(self._kept("fc", x)).tanh()
        out: Tensor = self.head(self._kept("head", x))
        return out

    def _kept(self, name: str, x: Tensor) -> Tensor:
        x = x.clone() if x.requires_grad else x.clone().requires_grad_()
        self.read.append((name, x))
        return x


def example_change(
    model: Recorder, tool: Tool, name: str, candidate: Precision, elementwise: bool, loss: Tensor
) -> float:
    """Of one example, whose forward pass has just been recorded."""
    layer_module = model.get_submodule(name)
    weight = model.get_parameter(f"{name}.weight")
    rounded = tool.quantizer.weight(name, layer_module, candidate.weight)
    (g,) = torch.autograd.grad(loss, weight, retain_graph=True)
    products = [g * (rounded - weight.detach())]
    for read, x in model.read:
        if read == name:
            (g,) = torch.autograd.grad(loss, x, retain_graph=True)
            rounded = tool.quantizer.activation(
                name, layer_module, x.detach(), candidate.activation
            )
            products.append(g * (rounded - x.detach()))
    if elementwise:
        return float(sum(product.abs().sum() for product in products))
    return abs(float(sum(product.sum() for product in products)))


@pytest.mark.parametrize("elementwise", [True, False])
def test_changes_are_those_of_a_loop_over_examples(elementwise: bool) -> None:
    """Gradients of a layer that is called twice are added up before the absolute value."""
    model, x, targets = Recorder().eval(), torch.randn(5, 4), torch.randint(0, 3, (5,))
    tool = Tool(model, [(x[:3], targets[:3]), (x[3:], targets[3:])])

    found = tool.losses(FirstOrder("targets", elementwise))

    for name in ("fc", "head"):
        for column, candidate in enumerate(CHOICES):
            changes = []
            for one, target in zip(x.split(1), targets.split(1), strict=True):
                loss = F.cross_entropy(model(one), target)
                changes.append(example_change(model, tool, name, candidate, elementwise, loss))
            assert found[name][column] == pytest.approx(sum(changes) / 5, rel=1e-4, abs=1e-9)


def test_products_do_not_cancel() -> None:
    """The elementwise change is at least as large as that of the sum."""
    tool = Tool(nn.Linear(4, 3), [torch.randn(6, 4)])

    products, sums = (tool.losses(FirstOrder(elementwise=e))[""] for e in (True, False))

    assert all(p >= s for p, s in zip(products, sums, strict=True))
    assert products[0] > sums[0] > 0


def test_change_predicts_the_loss() -> None:
    """For a fine format, the summed change of one example is what its cross-entropy rises by."""
    model, x, target = nn.Linear(4, 3).eval(), torch.randn(1, 4), torch.tensor([1])
    data, candidate = Calibration([(x, target)]), Precision.parse("w8")
    network, quantizer = Network.of(model, data), Quantizer(ActivationRanges({}))
    estimator = FirstOrder("targets", elementwise=False)

    found = estimator.estimate(Estimation(network, data, quantizer, (candidate,))).table.values[
        0, 0
    ]

    weight = quantizer.weight("", model, candidate.weight)
    change = F.cross_entropy(F.linear(x, weight, model.bias), target) - F.cross_entropy(
        model(x), target
    )
    assert found == pytest.approx(abs(float(change.detach())), rel=0.05)


def test_sampled_labels_give_the_mean_over_classes() -> None:
    """``sum_c p_c |<p - e_c, change of the logits>|`` for a linear classifier."""
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    tool = Tool(model, [x.repeat(1000, 1)])

    found = tool.losses(FirstOrder(elementwise=False))[""]

    p = model(x).detach().softmax(dim=-1)
    weight = tool.quantizer.weight("", model, CHOICES[0].weight)
    change = (x @ (weight - model.weight).T).detach()
    gradients = p[:, None] - torch.eye(3)  # [N, label, C]
    expected = (p * (gradients * change[:, None]).sum(dim=-1).abs()).sum() / 2
    assert found[0] == pytest.approx(float(expected), rel=0.05)


def test_positions_are_averaged() -> None:
    """With targets, a sequence that repeats an example three times costs what the example does."""
    model, x, targets = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(0, 3, (6,))
    once = Tool(model, [(x, targets)]).losses(FirstOrder("targets"))[""]

    sequence = Tool(model, [(x[:, None].repeat(1, 3, 1), targets[:, None].repeat(1, 3))])
    found = sequence.losses(FirstOrder("targets"))[""]

    assert found == pytest.approx(once, rel=1e-4)


def test_targets_are_needed_where_asked_for() -> None:
    """Without any, the error says so."""
    tool = Tool(nn.Linear(4, 3), [torch.randn(2, 4)])

    with pytest.raises(DataError, match="labels=targets, unlike labels=sampled, needs targets"):
        tool.losses(FirstOrder("targets"))
