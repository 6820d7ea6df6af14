"""Output-gradient scores against loops over examples, and a published implementation's formula."""

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
from mpq.sensitivity import Estimation, OutputGradient

CHOICES = tuple(map(Precision.parse, ("w2", "w3a4d", "w32a3d", "fp32")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: list[Any]) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.quantizer = Quantizer(ActivationRanges.calibrate(self.network, self.data, CHOICES))

    def losses(self, labels: str = "targets", seed: int = 0) -> dict[str, list[float]]:
        """Layer name to its losses."""
        estimator = OutputGradient(labels, seed)
        found = estimator.estimate(Estimation(self.network, self.data, self.quantizer, CHOICES))
        assert (found.table.name, found.table.unit) == ("output-gradient", "nats")
        return dict(zip(found.table.layers, found.table.values.tolist(), strict=True))

    def rounded(self, name: str, x: Tensor, candidate: Precision) -> tuple[Tensor, Tensor]:
        """Weight and input of a layer in a format."""
        layer_module = self.network.layer_module(name)
        weight = self.quantizer.weight(name, layer_module, candidate.weight)
        return weight, self.quantizer.activation(name, layer_module, x, candidate.activation)


class Net(nn.Module):
    """A convolution and a head, written so that every layer's output can be given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_head(self.head(self.after_conv(self.conv(x))))

    def after_conv(self, y: Tensor) -> Tensor:
        return y.tanh().mean(dim=(2, 3))

    def after_head(self, y: Tensor) -> Tensor:
        return y


def output_gradient(rest: Any, y: Tensor, target: Tensor) -> Tensor:
    """Gradient of one example's cross-entropy with respect to a layer's output."""
    y = y.detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(rest(y), target), y)
    return g


def test_scores_are_those_of_a_loop_over_examples() -> None:
    """Half the mean of ``sum (dL/dy)^2 (y_q - y)^2``, in batches of different sizes."""
    model, x, targets = Net().eval(), torch.randn(5, 2, 4, 4), torch.randint(0, 3, (5,))
    tool = Tool(model, [(x[:3], targets[:3]), (x[3:], targets[3:])])

    found = tool.losses()

    for column, candidate in enumerate(CHOICES):
        conv, head = 0.0, 0.0
        for one, target in zip(x.split(1), targets.split(1), strict=True):
            weight, rounded = tool.rounded("conv", one, candidate)
            y = model.conv(one)
            y_q = F.conv2d(rounded, weight, model.conv.bias, padding=1, groups=2)
            g = output_gradient(lambda v: model.head(model.after_conv(v)), y, target)
            conv += float((g * (y_q - y).detach()).square().sum())
            read = model.after_conv(y).detach()
            weight, rounded = tool.rounded("head", read, candidate)
            y, y_q = model.head(read), F.linear(rounded, weight, model.head.bias)
            g = output_gradient(model.after_head, y, target)
            head += float((g * (y_q - y).detach()).square().sum())
        assert found["conv"][column] == pytest.approx(0.5 * conv / 5, rel=1e-4)
        assert found["head"][column] == pytest.approx(0.5 * head / 5, rel=1e-4)


def _keep(kept: dict[str, Tensor]) -> Any:
    def hook(_: nn.Module, __: Any, grad_output: Any) -> None:
        kept["g"] = grad_output[0]

    return hook


def test_score_of_a_batch_of_one_is_half_of_model_optimizers() -> None:
    """There, ``((grad_output.float() ** 2) * (output_diff.float() ** 2)).sum()`` for a batch.

    modelopt/torch/quantization/algorithms.py of NVIDIA's Model Optimizer.
    """
    model, x, target = Net().eval(), torch.randn(1, 2, 4, 4), torch.tensor([2])
    tool = Tool(model, [(x, target)])
    kept: dict[str, Tensor] = {}
    handle = model.conv.register_full_backward_hook(_keep(kept))
    F.cross_entropy(model(x.clone().requires_grad_()), target).backward()
    handle.remove()

    found = tool.losses()["conv"][0]

    weight, _ = tool.rounded("conv", x, CHOICES[0])
    output_diff = F.conv2d(x, weight, model.conv.bias, padding=1, groups=2) - model.conv(x)
    score = ((kept["g"].float() ** 2) * (output_diff.float() ** 2)).sum()
    assert found == pytest.approx(0.5 * float(score.detach()), rel=1e-4)


def test_sampled_labels_give_the_mean_over_classes() -> None:
    """For a linear classifier, ``sum_c p_c (1 - p_c) (y_q - y)_c^2 / 2``."""
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    tool = Tool(model, [x.repeat(1000, 1)])

    found = tool.losses("sampled")[""]

    p = model(x).detach().softmax(dim=-1)
    for column, candidate in enumerate(CHOICES):
        weight, rounded = tool.rounded("", x, candidate)
        change = (F.linear(rounded, weight, model.bias) - model(x)).detach()
        expected = 0.5 * float((p * (1 - p) * change.square()).sum()) / 2
        assert found[column] == pytest.approx(expected, rel=0.1)


def test_half_precision_does_not_blur_the_change() -> None:
    """In bfloat16, outputs are compared in float32: w16 in bfloat16 numbers costs nothing."""
    model = nn.Linear(64, 3).to(torch.bfloat16).eval()
    data = Calibration([torch.randn(5, 64, dtype=torch.bfloat16)])
    network, candidates = Network.of(model, data), (Precision.parse("wbf16"), Precision.parse("w8"))

    found = OutputGradient().estimate(
        Estimation(network, data, Quantizer(ActivationRanges({})), candidates)
    )

    assert found.table.values[0, 0] == 0
    assert found.table.values[0, 1] > 0


def test_targets_are_needed_where_asked_for() -> None:
    """Without any, the error says how to give them."""
    tool = Tool(nn.Linear(4, 3), [torch.randn(2, 4)])

    with pytest.raises(
        DataError,
        match="unlike labels=sampled, needs targets, and the data has none: yield .inputs",
    ):
        tool.losses()
