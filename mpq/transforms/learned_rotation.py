"""Rotations that are learned: the loss of the rounded network, on the orthogonal group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mpq._support.progress import track
from mpq.network.examples import Batch
from mpq.network.reparametrization import Change, Doubles
from mpq.network.reparametrized import changed, rotated
from mpq.quantization.grid import Grid
from mpq.quantization.input_sample import SAMPLES_PER_BATCH
from mpq.quantization.observer import needs_range
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import quantize_activation, quantize_rows, weight_grid
from mpq.transforms._base import Transforming
from mpq.transforms.orthogonal import nearest_orthogonal, reflection
from mpq.transforms.rotations import Turn

NUM_EXAMPLES: Final = 256
"""Calibration examples at most; on a quarter of them the rotations are compared."""
AT_ONCE: Final = 16
"""Examples of one step."""
_ANGLE: Final = 0.05
"""Radians that the first step turns by, in the root mean square over planes; falls to 0."""
_MOMENTUM: Final = 0.9
_KEPT: Final = 10
"""Steps for which ranges are kept."""


def learned(
    module: nn.Module,
    folded: Sequence[Change],
    turns: Sequence[Turn],
    start: Sequence[Doubles],
    on: Transforming,
    steps: int,
) -> list[Doubles]:
    r"""Rotations with a smaller loss than those that one starts with, or these themselves.

    .. math:: R \leftarrow (I + \tfrac{\alpha}{2} Y)^{-1} (I - \tfrac{\alpha}{2} Y) R, \quad
        Y = G R^\top - R G^\top

    Gradient descent with momentum by Cayley transforms (SpinQuant, Liu et al. 2024,
    arXiv:2405.16406), with gradients ``G`` of the mean divergence from the network's own
    outputs, all linear layers rounded, and the gradient of rounding taken as 1. Where we depart
    from it: weights are rounded as well as inputs, with ranges that are found anew every ten
    steps; the step is a given angle, whatever the size of the gradient; and what is learned
    counts only if examples that no step has seen lose less by it.

    Args:
        module: In evaluation mode; left as found.
        folded: What is done to parameters before they are rotated.
        turns: What is rotated.
        start: ``[d, d]`` each; of ``d - 1`` where a mean is kept, see ``around_mean``.
        on: Examples, precision and metric.
        steps: How many.
    """
    rotating = _Rotating(module, _folded(module, folded), tuple(turns), on, _Grids(on))
    batches = [part for batch in on.batches(NUM_EXAMPLES) for part in _parts(batch)]
    cut = len(batches) - max(1, len(batches) // 4)
    if cut < 1:
        return list(start)
    references = [rotating.original(batch) for batch in batches]
    device = next(module.parameters()).device
    now = [torch.from_numpy(x).to(device) for x in start]
    momenta = [torch.zeros_like(x) for x in now]
    for step in track(range(steps), "learning rotations"):
        if step % _KEPT == 0:
            rotating.grids.forget()
        at = step % cut
        gradients = rotating.gradients(now, batches[at], references[at])
        angle = _ANGLE * (1 - step / steps)
        for i, gradient in enumerate(gradients):
            momenta[i] = _MOMENTUM * momenta[i] + _tangent(gradient, now[i])
            now[i] = _turned(now[i], momenta[i], angle)
    found = [nearest_orthogonal(x.cpu().numpy()) for x in now]
    unseen = list(zip(batches[cut:], references[cut:], strict=True))
    before, after = (rotating.loss_of(matrices, unseen) for matrices in (start, found))
    return found if after < before else list(start)


@final
@dataclass(frozen=True, eq=False)
class _Rotating:
    """A network as a function of its rotations.

    Args:
        module: In evaluation mode.
        parameters: Of it, with normalizations folded.
        turns: What is rotated.
        on: Precision and metric.
        grids: Of this network's layers.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    turns: tuple[Turn, ...]
    on: Transforming
    grids: "_Grids"

    def original(self, batch: Batch) -> Tensor:
        """``[N, P, C]`` outputs without rounding."""
        with torch.no_grad():
            return self.on.metric.positions(self.module(*batch.args, **batch.kwargs)).float()

    def gradients(
        self, matrices: Sequence[Tensor], batch: Batch, reference: Tensor
    ) -> tuple[Tensor, ...]:
        """``[d, d]`` each, float64."""
        leaves = [matrix.clone().requires_grad_() for matrix in matrices]
        with torch.enable_grad():
            loss = self._loss(leaves, batch, reference)
            return torch.autograd.grad(loss, leaves)

    def loss_of(
        self, matrices: Iterable[Doubles], examples: Sequence[tuple[Batch, Tensor]]
    ) -> float:
        """Mean over batches."""
        device = next(iter(self.parameters.values())).device
        self.grids.forget()
        placed = [torch.from_numpy(matrix).to(device) for matrix in matrices]
        with torch.no_grad():
            return sum(float(self._loss(placed, *pair)) for pair in examples) / len(examples)

    def _loss(self, matrices: Sequence[Tensor], batch: Batch, reference: Tensor) -> Tensor:
        parameters = dict(self.parameters)
        for turn, matrix in zip(self.turns, matrices, strict=True):
            by = _around_mean(matrix) if turn.keeps_mean else matrix
            for run in turn.runs:
                values = parameters[run.parameter]
                parameters[run.parameter] = rotated(
                    values, run.axis, run.start, run.count, by.to(values.dtype)
                )
        with _RoundLinear(self.grids):
            output = torch.func.functional_call(
                self.module, parameters, batch.args, dict(batch.kwargs)
            )
        found = self.on.metric.positions(output).float()
        return self.on.metric.divergence(reference, found).mean()


@final
@dataclass(eq=False)
class _Grids:
    """Scales of all linear layers, by their calls; kept for some steps, as searching takes long.

    Args:
        on: Precision, ranges and numerics.
    """

    on: Transforming
    weights: dict[int, Grid] = field(default_factory=dict)
    inputs: dict[int, ActivationRange] = field(default_factory=dict)

    def forget(self) -> None:
        """Makes all of them anew at the next use."""
        self.weights.clear()
        self.inputs.clear()

    def weight(self, call: int, rows: Tensor) -> Tensor:
        """``[O, K]`` rounded."""
        spec = self.on.precision.weight
        if spec.number.needs_scale and not spec.is_exact and call not in self.weights:
            method = RANGE_METHODS.build(self.on.ranges.weight)
            self.weights[call] = weight_grid(rows, spec, method, self.on.numerics)
        return quantize_rows(rows, spec, self.weights.get(call))

    def input(self, call: int, x: Tensor) -> Tensor:
        """Rounded, in its own shape."""
        spec = self.on.precision.activation
        if needs_range(spec) and call not in self.inputs:
            method = RANGE_METHODS.build(self.on.ranges.activation)
            row = x.reshape(1, -1)
            row = row[:, :: -(-row.shape[1] // SAMPLES_PER_BATCH)]
            low, high = method.ends(row, spec.number, spec.symmetric)
            self.inputs[call] = ActivationRange(float(low), float(high)).with_zero
        return quantize_activation(x, spec, self.inputs.get(call), 1, self.on.numerics)


@final
class _RoundLinear(TorchFunctionMode):
    """Weights and inputs of all linear layers are rounded; gradients pass as if they were not."""

    def __init__(self, grids: _Grids) -> None:
        super().__init__()
        self._grids = grids
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        x, weight, *rest = args
        self._calls += 1
        with torch.no_grad():
            rounded = self._grids.weight(self._calls, weight.detach().float()).to(weight.dtype)
            read = self._grids.input(self._calls, x.detach().float()).to(x.dtype)
        passed = (x + (read - x).detach(), weight + (rounded - weight).detach())
        return func(*passed, *rest, **kwargs)


def _folded(module: nn.Module, changes: Sequence[Change]) -> dict[str, Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        own = [change for change in changes if change.parameter == name]
        values = parameter.detach()
        found[name] = changed(values.double(), own).to(values.dtype) if own else values
    return found


def _parts(batch: Batch) -> list[Batch]:
    if batch.is_whole:
        return [batch]
    starts = range(0, batch.size, AT_ONCE)
    return [batch.slice(start, min(start + AT_ONCE, batch.size)) for start in starts]


def _around_mean(inner: Tensor) -> Tensor:
    """``around_mean`` of a tensor that has a gradient."""
    mirror = torch.from_numpy(reflection(len(inner) + 1)).to(inner)
    found: Tensor = mirror @ torch.block_diag(torch.ones_like(inner[:1, :1]), inner) @ mirror
    return found


def _tangent(gradient: Tensor, at: Tensor) -> Tensor:
    """``[d, d]`` skew-symmetric: in which planes the loss rises."""
    product = gradient @ at.T
    return product - product.T


def _turned(matrix: Tensor, direction: Tensor, angle: float) -> Tensor:
    """A Cayley transform against a skew-symmetric direction."""
    size = len(matrix)
    norm = float(direction.norm())
    if norm == 0:
        return matrix
    half = 0.5 * angle * size**0.5 / norm * direction
    one = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    found: Tensor = torch.linalg.solve(one + half, (one - half) @ matrix)
    return found
