"""Hutchinson traces against dense Hessians, and closed forms where a single probe is exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.calibration import Calibration
from mpq.errors import InputError
from mpq.model import Network
from mpq.precision import Precision
from mpq.quantization import ActivationRanges, Quantizer
from mpq.sensitivity import HessianTrace

BF16 = Precision.parse("wbf16")
FP16 = Precision.parse("w16")
WEIGHT_2 = Precision.parse("w2")
INPUT_4 = Precision.parse("w32a4d")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: list[Tensor], *choices: Precision) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.choices = choices
        ranges = ActivationRanges.calibrate(self.network, self.data, choices)
        self.quantizer = Quantizer(ranges)

    def losses(self, num_probes: int, seed: int = 0) -> dict[str, list[float]]:
        """Layer name to its losses."""
        estimator = HessianTrace(num_probes, seed)
        found = estimator.estimate(self.network, self.data, self.quantizer, self.choices)
        assert (found.table.name, found.table.unit) == ("hessian-trace", "nats")
        assert found.interactions is None
        return dict(zip(found.table.layers, found.table.values.tolist(), strict=True))

    def squared_error(self, name: str, choice: Precision) -> float:
        """Of a weight."""
        weight = self.network.weight(name)
        rounded = self.quantizer.weight(name, self.network.site(name), choice.weight)
        return float((rounded - weight).double().square().sum())


def kl(logits: Tensor, changed: Tensor) -> Tensor:
    """Summed over positions and examples."""
    log_p, log_q = logits.log_softmax(dim=-1), changed.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum()


def dense_trace(changed: Callable[[Tensor], Tensor], at: Tensor) -> float:
    """Trace of the Hessian of the KL divergence from ``changed(at)``, by reverse mode twice."""
    at = at.detach().double()
    logits = changed(at).detach()
    hessian = torch.func.jacrev(torch.func.jacrev(lambda v: kl(logits, changed(v))))(at)
    return float(hessian.detach().reshape(at.numel(), at.numel()).trace())


class Scales(nn.Module):
    """One weight per channel, one binary decision per channel: nothing mixes.

    The Hessian of the divergence is diagonal, in the weights and in the inputs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Conv1d(channels, channels, 1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(x)  # [N, C, 1]
        return torch.cat([y, torch.zeros_like(y)], dim=2)  # [N, C, 2]: C positions, 2 classes


@pytest.mark.parametrize("sizes", [[9], [4, 2, 3]])
def test_mean_over_probes_is_the_diagonal(sizes: list[int]) -> None:
    """``H = diag(mean_n x^2 p (1 - p) / C)`` for the weights, whatever the batches."""
    x, model = torch.randn(9, 5, 1), Scales(5)
    tool = Tool(model, list(x.split(sizes)), BF16, FP16)

    found = tool.losses(num_probes=600)["scale"]

    p = model(x).detach().double().softmax(dim=-1)[..., 0]  # [N, C]
    trace = float((x[..., 0] ** 2 * p * (1 - p)).sum(dim=1).mean()) / 5
    expected = [0.5 * trace / 5 * tool.squared_error("scale", c) for c in (BF16, FP16)]
    assert found == pytest.approx(expected, rel=0.1)


def test_mean_over_probes_is_the_diagonal_of_an_input() -> None:
    """``diag(w^2 p (1 - p) / C)`` for each input, times the inputs' mean squared error."""
    x, model = torch.randn(9, 5, 1), Scales(5)
    tool = Tool(model, [x], INPUT_4)

    found = tool.losses(num_probes=150)["scale"]

    p = model(x).detach().double().softmax(dim=-1)[..., 0]
    weight = model.scale.weight.detach().flatten().double()
    trace = float((weight**2 * p * (1 - p)).sum(dim=1).mean()) / 5
    rounded = tool.quantizer.activation("scale", model.scale, x, INPUT_4.activation)
    error = float((rounded - x).double().square().sum()) / 9
    assert found == pytest.approx([0.5 * trace / 5 * error], rel=0.15)


def test_mean_over_probes_is_the_dense_trace() -> None:
    """Two layers with a nonlinearity between; traces by a dense Hessian."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    tool = Tool(model, [x[:2], x[2:]], WEIGHT_2)

    found = tool.losses(num_probes=600)

    for name in ("0", "2"):
        weight = model.get_parameter(f"{name}.weight")

        def changed(value: Tensor, name: str = name) -> Tensor:
            own = {k: v.detach().double() for k, v in model.named_parameters()}
            own[f"{name}.weight"] = value
            out: Tensor = torch.func.functional_call(model, own, (x.double(),))
            return out

        trace = dense_trace(changed, weight) / 6
        expected = 0.5 * trace / weight.numel() * tool.squared_error(name, WEIGHT_2)
        assert found[name] == pytest.approx([expected], rel=0.1)


def test_input_traces_are_the_dense_ones() -> None:
    """The trace over one example's input, averaged over examples, for every layer."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    tool = Tool(model, [x[:2], x[2:]], INPUT_4)
    parts = {"0": (model, x), "2": (model[2], model[:2](x).detach())}

    found = tool.losses(num_probes=600)

    for name, (rest, read) in parts.items():
        exact = Double(rest)
        trace = sum(dense_trace(exact, one[None]) for one in read) / 6
        rounded = tool.quantizer.activation(name, tool.network.site(name), read, INPUT_4.activation)
        error = float((rounded - read).double().square().sum()) / 6
        expected = 0.5 * trace / read.shape[1] * error
        # Blocks share a probe, so that the first layer's small trace is estimated with much noise.
        assert found[name] == pytest.approx([expected], rel=0.4 if name == "0" else 0.1)


class Double:
    """A module computed in float64, leaving the module as it is."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.weights = {k: v.detach().double() for k, v in module.named_parameters()}

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(self.module, self.weights, (x,))
        return out


def test_weights_and_inputs_add_up() -> None:
    """The loss of ``w2a4`` is that of ``w2`` plus that of ``a4``, with the same probes."""
    both = Precision.parse("w2a4d")
    tool = Tool(nn.Linear(4, 3), [torch.randn(6, 4)], WEIGHT_2, INPUT_4, both)

    (weights, inputs, together) = tool.losses(num_probes=3)[""]

    assert together == pytest.approx(weights + inputs)
    assert inputs > 0


def test_loss_grows_with_the_squared_error() -> None:
    """Two precisions of one layer are as far apart as their squared errors."""
    precisions = [Precision.parse(text) for text in ("w2", "w3", "w5")]
    tool = Tool(nn.Linear(4, 3), [torch.randn(6, 4)], *precisions)

    found = tool.losses(num_probes=1)[""]

    errors = [tool.squared_error("", precision) for precision in precisions]
    ratios = [loss / error for loss, error in zip(found, errors, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)


def test_attention_has_a_second_derivative() -> None:
    """The fused kernels do not; the plain one is used."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(4, 12)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.project(x)[:, None].chunk(3, dim=-1)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            out: Tensor = self.head(mixed[:, 0].mean(dim=1))
            return out

    tool = Tool(Attention(), [torch.randn(6, 5, 4)], WEIGHT_2)

    found = tool.losses(num_probes=30)

    assert all(loss[0] > 0 for loss in found.values())


def test_positions_are_averaged() -> None:
    """A sequence that repeats an example four times costs what the example costs."""
    model, x = nn.Linear(4, 3), torch.randn(6, 4)

    once = Tool(model, [x], WEIGHT_2).losses(num_probes=200)[""]
    sequence = Tool(model, [x[:, None].expand(6, 4, 4)], WEIGHT_2).losses(num_probes=200)[""]

    assert sequence == pytest.approx(once, rel=0.05)


def test_no_loss_is_negative() -> None:
    """Curvature of the divergence is not negative, even where few probes estimate it."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    tool = Tool(model, [torch.randn(3, 4)], WEIGHT_2, INPUT_4)

    found: list[Any] = [tool.losses(num_probes=1, seed=seed) for seed in range(10)]

    assert min(loss for losses in found for row in losses.values() for loss in row) >= 0


def test_no_probe_is_refused() -> None:
    """At least one."""
    with pytest.raises(InputError, match="num_probes >= 1; got 0"):
        HessianTrace(num_probes=0)
