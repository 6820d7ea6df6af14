"""More than the tolerance is accepted only where layers were looked at, and none of them is off."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from mpq.backends.acceptance import MOST_UNSEEN, Accepted, accepted_of
from mpq.backends.last_digits import MOST, LastDigits, largest
from mpq.backends.layerwise import INPUT, traced
from mpq.backends.onnx.qdq import OnnxQdq
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

GAIN = 2.5
SIZES = {"w4": (30, 64), "w4a8": (40, 256)}
"""Depth and width at which the digits of the outputs are those of last digits and of ties."""


class Rounding(nn.Linear):
    """Rounds what it reads, as a simulation does."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return super().forward((x * 127).round() / 127)


class Chaotic(nn.Module):
    """Layers each of which moves its outputs further apart than its inputs were, and norms."""

    def __init__(self, precision: str, eps: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind, (depth, width) = Rounding if precision == "w4a8" else nn.Linear, SIZES[precision]
        self.blocks = nn.ModuleList(kind(width, width) for _ in range(depth))
        norms = [nn.LayerNorm(width) if kind is Rounding else nn.Identity() for _ in self.blocks]
        self.norms, self.norm = nn.ModuleList(norms), nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, 8)
        for block in self.blocks:
            nn.init.normal_(block.get_parameter("weight"), std=GAIN / width**0.5)
            nn.init.normal_(block.get_parameter("bias"), std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]``."""
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = norm(block(x).tanh())
        found: Tensor = self.head(self.norm(x))
        return found


Told = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@torch.no_grad()
def accepted(
    precision: str, other: nn.Module, told: Told = lambda trace: trace, apart: float = 0.0
) -> tuple[Accepted, float, float]:
    """What is accepted of another network, its judged difference, and the outputs' spread.

    Args:
        precision: Of all layers.
        other: Runs in the place of the runtime.
        told: What it tells of what its layers read and gave.
        apart: By how much its outputs differ besides, as ties move them.
    """
    model = Chaotic(precision).eval()
    layers = [
        AssignedLayer(n, "linear", tuple(m.weight.shape), Precision.parse(precision))
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    assignment = Assignment(tuple(layers))
    x = torch.randn(64, SIZES[precision][1], generator=torch.Generator().manual_seed(0))
    batch, expected = Batch((x,)), model(x)
    differences, spread = largest(batch, expected - other(x)) + apart, float(expected.std())
    names = list(assignment.precisions)
    digits = LastDigits(model, names, 1e-6, [batch], [expected], lambda outputs, _: outputs)
    trace = told(traced(other, lambda: other(x[:1])))
    found = accepted_of(OnnxQdq(), assignment, differences, spread, digits, lambda: trace)
    judged = differences.median() if assignment.rounds_inputs else differences.max()
    return found, float(judged), spread


def nudged() -> nn.Module:
    """Biases and norms are a hair off, as where sums are added up in another order."""
    found, draws = Chaotic("w4").eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 1:
                parameter.mul_(1 + 3e-7 * torch.randn(parameter.shape, generator=draws))
    return found


def biased(precision: str, layer: str, by: float) -> nn.Module:
    """One of its biases is another one, of one channel."""
    found = Chaotic(precision).eval()
    with torch.no_grad():
        found.get_parameter(f"{layer}.bias")[0] += by
    return found


def test_last_digits_are_accepted_where_layers_were_looked_at() -> None:
    """And where nothing is told of them, no more than the tolerance."""
    right = nudged()

    found, worst, spread = accepted("w4", right)
    with pytest.raises(ModelError, match="decoded alike. Its layers could not be looked at; noth"):
        accepted("w4", right, lambda _: {})

    assert 1e-4 * spread < worst <= found.difference <= MOST * spread
    assert found.warnings == ()


def test_layers_that_are_not_told_are_named_in_a_warning() -> None:
    """Of one of them the input is missing, of another everything."""

    def told(trace: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        gone = (INPUT + "head", INPUT + "blocks.3", "output:blocks.3")
        return {key: x for key, x in trace.items() if key not in gone}

    found, *_ = accepted("w4", nudged(), told)

    (warning,) = found.warnings
    assert warning.endswith("and 'blocks.3', 'head' could not be looked at by themselves")


@pytest.mark.parametrize("told", [lambda trace: trace, lambda _: {}], ids=["told", "not told"])
def test_a_wrong_bias_within_the_last_digits_is_refused(told: Told) -> None:
    """Whether layers can be looked at or not."""
    with pytest.raises(ModelError, match="is 'head', by 0.002|could not be looked at"):
        accepted("w4", biased("w4", "head", 2e-3), told)


@pytest.mark.parametrize("eps", [1e-3, 3e-3])
def test_a_norm_that_is_read_with_another_epsilon_is_refused(eps: float) -> None:
    """Though it is no layer of the assignment, and outputs move less than last digits do."""
    with pytest.raises(ModelError, match="of what it reads is 'norm', by"):
        accepted("w4", Chaotic("w4", eps).eval())


def test_ties_are_accepted_where_layers_were_looked_at() -> None:
    """They part the two networks anywhere, and every layer still does the same."""
    found, median, spread = accepted("w4a8", Chaotic("w4a8").eval(), apart=0.02)

    assert MOST_UNSEEN * spread < median <= found.difference
    assert found.warnings == ()


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.35", "blocks.39", "head"])
def test_a_wrong_bias_is_refused_where_ties_move_outputs_more(layer: str) -> None:
    """Of one channel, by less than a tenth of a layer's standard deviation in the blocks."""
    with pytest.raises(ModelError, match=f"is '{layer}', by 0.2 in the median of a channel"):
        accepted("w4a8", biased("w4a8", layer, 0.2))


def test_ties_are_accepted_up_to_a_limit_where_layers_tell_outputs_alone() -> None:
    """With a warning within it, and not at all beyond."""

    def outputs(trace: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {key: x for key, x in trace.items() if not key.startswith(INPUT)}

    found, median, spread = accepted("w4a8", biased("w4a8", "head", 2e-3), outputs)
    with pytest.raises(ModelError, match="nothing was written"):
        accepted("w4a8", biased("w4a8", "head", 0.2), outputs)

    assert 1e-4 * spread < median <= found.difference == pytest.approx(MOST_UNSEEN * spread)
    (warning,) = found.warnings
    assert "'blocks.0', 'blocks.1', 'blocks.2' and 38 more could not be looked at" in warning
