"""Hessian eigenvalue: a layer's largest curvature times the squared error of rounding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.network.divergence import random_signs
from mpq.network.layer import Layer
from mpq.problem.cost_table import WEIGHTS
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.curvature.hessian_products import (
    LOSSES,
    Objective,
    Variable,
    check_option,
    objective,
    product,
    second_order,
)
from mpq.sensitivity.curvature.pyhessian_backend import (
    BACKENDS,
    pyhessian_eigenvalues,
    refuse_inputs,
)
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.per_example import by_example
from mpq.sensitivity.passes.rounding_errors import weight_errors
from mpq.sensitivity.passes.streams import Streams, signs_by_example


@final
@dataclass(frozen=True)
class HessianEigenvalue(SensitivityEstimator):
    r"""Largest eigenvalue of a layer's block of the Hessian, times the squared error of rounding.

    .. math:: s_{\ell b} = \tfrac12 |\lambda(H_{W_\ell})| \, \lVert Q_b(W_\ell) - W_\ell \rVert^2
        + \tfrac12 \, \mathrm{mean}_n \, |\lambda(H_{x_{n \ell}})| \,
            \lVert Q_b(x_{n \ell}) - x_{n \ell} \rVert^2

    in nats per example: each share is the largest second-order change that an error of that size
    can make, so that tables come out far above the measured loss. ``lambda`` is the eigenvalue of
    largest magnitude, by power iteration with products of one block; it is approached from below.
    Examples' inputs are independent, so that one product iterates on all of them.

    HAWQ itself ranks layers by ``lambda`` over the number of weights, which are the table's scores
    (solver ``ordered``), and orders their fine-tuning
    by ``lambda`` times the squared error; the latter, with the half of the Taylor term, is what a
    sum of losses can use. It takes the cross-entropy of the targets; here the default is the
    divergence from the original network, which needs none.

    References: Dong et al. (2019), HAWQ, arXiv:1905.03696; Yao et al. (2020), PyHessian,
    arXiv:1912.07145 (``backend="pyhessian"``: weights only).

    Args:
        max_iterations: At most so many products for each layer, over all data.
        tolerance: Relative change of an eigenvalue at which its iteration ends.
        loss: ``divergence`` or ``cross-entropy`` of the targets.
        backend: ``mpq`` or ``pyhessian``.
        seed: Seed of the vectors that the iterations start with.
        inputs: Whether rounded inputs are priced; HAWQ prices weights alone.
    """

    name: ClassVar[str] = "hessian-eigenvalue"
    summary: ClassVar[str] = "HAWQ: top curvature x squared error, L Hessian products x iterations"

    max_iterations: int = 30
    tolerance: float = 0.01
    loss: str = "divergence"
    backend: str = "mpq"
    seed: int = 0
    inputs: bool = True

    def __post_init__(self) -> None:
        if self.max_iterations < 1 or not self.tolerance >= 0:
            raise InputError(
                "hessian-eigenvalue needs max_iterations >= 1 and tolerance >= 0; got "
                f"{self.max_iterations} and {self.tolerance}"
            )
        check_option("loss", self.loss, LOSSES)
        check_option("backend", self.backend, BACKENDS)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            ModelError: If the network's output depends on no layer.
            DataError: If the cross-entropy is asked for and there are no targets.
            InputError: If ``pyhessian`` is to price inputs.
            MissingDependencyError: If ``pyhessian`` is not installed.
        """
        eigenvalues = abs(self._of_weights(on))
        values = eigenvalues[:, None] * weight_errors(on)
        if self.inputs and on.inputs.is_rounding:
            values = values + input_bounds(on, self)
        sizes = np.array([layer.num_weights for layer in on.network.layers])
        scores = {WEIGHTS: eigenvalues / sizes}
        return Sensitivity(on.table(0.5 * values, self.name, scores=scores))

    def _of_weights(self, on: Estimation) -> Array:
        if self.backend == "mpq":
            return weight_eigenvalues(on, self)
        refuse_inputs(self.inputs and on.inputs.is_rounding)
        return pyhessian_eigenvalues(
            on, objective(on.network, self.loss), self.max_iterations, self.tolerance,
            torch.Generator().manual_seed(self.seed),
        )  # fmt: skip


def weight_eigenvalues(on: Estimation, how: HessianEigenvalue) -> Array:
    """``[L]`` eigenvalues of largest magnitude of the weights' blocks, by power iteration.

    Each iteration is one pass over the data, for all layers that still change. A layer that the
    loss does not depend on has 0.

    Args:
        on: ``L`` layers and the examples.
        how: Loss, number of iterations, tolerance and seed.
    """
    generator = torch.Generator().manual_seed(how.seed)
    loss = objective(on.network, how.loss)
    found: dict[str, float] = {}
    # In float64, as are the sums over batches, whatever the network computes in.
    vectors = {
        layer.name: _unit(random_signs(on.network.weight(layer.name), generator))
        for layer in on.network.layers
    }
    for _ in track(range(how.max_iterations), "power iteration"):
        products = _mean_products(on, loss, vectors)
        # `products` is a dict of its own, so that `vectors` may shrink in this loop.
        for name, h in products.items():
            # The Rayleigh quotient of a unit vector; the length of `h` would lose the sign.
            before, found[name] = found.get(name), float((vectors[name] * h).sum())
            if _is_settled(before, found[name], how.tolerance):
                del vectors[name]
            else:
                vectors[name] = _unit(h)
        if not vectors:
            break
    return np.array([found.get(name, 0.0) for name in on.names])


def _is_settled(before: float | None, value: float, tolerance: float) -> bool:
    """Also where the vector has met only curvature of 0."""
    return value == 0 or (before is not None and abs(value - before) <= tolerance * abs(value))


def _unit(v: Tensor) -> Tensor:
    """Of length 1, unless it is 0."""
    length = torch.linalg.vector_norm(v)
    return v / length if length > 0 else v


def _mean_products(
    on: Estimation, loss: Objective, vectors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Each layer's own block times its vector, per example."""
    sums = {name: torch.zeros_like(v) for name, v in vectors.items()}
    examples = 0
    for batch in on.network.batches(on.data):
        with second_order(on.network, batch, loss, with_inputs=False) as found:
            for name in sums:
                if name in found.weights:
                    # One layer at a time: a product for all would add terms of other blocks.
                    (h,) = product([found.weights[name]], [vectors[name]])
                    sums[name] += h
        examples += batch.size
    return {name: total / examples for name, total in sums.items()}


def input_bounds(on: Estimation, how: HessianEigenvalue) -> Array:
    r"""``[L, B]`` of :math:`\mathrm{mean}_n |\lambda_n| \lVert Q(x_n) - x_n \rVert^2`.

    A layer that is called several times has one block for all that it reads. Where examples share
    an input, its eigenvalue is that of the whole batch's loss.

    Args:
        on: ``L`` layers and the examples.
        how: Loss, number of iterations, tolerance and seed.
    """
    streams = Streams(how.seed)
    loss = objective(on.network, how.loss)
    total, examples = np.zeros((len(on.names), len(on.inputs.formats))), 0
    for batch in on.batches("power iteration on inputs"):
        with second_order(on.network, batch, loss, with_inputs=True) as found:
            for row, layer in enumerate(on.network.layers):
                block = _InputBlock(layer, found.inputs[layer.name], batch.size)
                eigenvalues = block.eigenvalues(how, streams).abs()
                for column, tensor_format in on.inputs.rounding:
                    errors = block.errors(on, tensor_format)
                    total[row, column] += float((eigenvalues * errors).sum())
        examples += batch.size
    return on.inputs.by_candidate(total / examples)


class _InputBlock:
    """All that a layer reads in one batch.

    Args:
        layer: Whose inputs they are; its batch axis says where examples lie.
        calls: One variable for every call of the layer in this batch.
        batch_size: Examples in the batch, ``N``.
    """

    def __init__(self, layer: Layer, calls: Sequence[Variable], batch_size: int) -> None:
        self.layer = layer
        self.calls = calls
        self.batch_size = batch_size
        # A block spans all calls, so that one which cannot be split by example joins the others.
        self.is_split = all(self._split(call.tensor) is not None for call in calls)

    def _split(self, tensor: Tensor) -> Tensor | None:
        return by_example(tensor, self.batch_size, self.layer.batch_axis)

    def _units(self, tensor: Tensor) -> Tensor:
        """``[U, ...]``, a view: the examples, or one unit that they share."""
        split = self._split(tensor) if self.is_split else None
        return tensor[None] if split is None else split

    def _dot(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """``[U]``."""
        products = (self._units(a * b) for a, b in zip(left, right, strict=True))
        # Not flattened: what is one thing by itself may have as many numbers as there are examples.
        return torch.stack([p.reshape(len(p), -1).sum(dim=1).cpu() for p in products]).sum(0)

    def _normalized(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Of length 1 in every unit, unless it is 0 there."""
        lengths = self._dot(vectors, vectors).sqrt()
        # A vector that curvature of 0 has made 0 stays so: infinity times 0 would be NaN.
        scale = torch.where(lengths > 0, 1 / lengths, 0.0)
        # Units are scaled in place, and only of contiguous memory are they sure to be a view; the
        # clone leaves the arguments as they are.
        found = [v.contiguous().clone() for v in vectors]
        for v in found:
            units = self._units(v)
            units.mul_(scale.to(v.device).reshape(-1, *[1] * (units.ndim - 1)))
        return found

    def eigenvalues(self, how: HessianEigenvalue, streams: Streams) -> Tensor:
        """``[U]`` float64 of largest magnitude, by power iteration on all units at once."""
        if not self.calls:
            return torch.zeros(1, dtype=torch.float64)
        vectors = self._normalized(self._starts(streams))
        found: Tensor | None = None
        is_settled = torch.zeros((), dtype=torch.bool)
        for _ in range(how.max_iterations):
            products = [h.double() for h in product(self.calls, vectors)]
            values = self._dot(vectors, products)
            if found is None:
                found = values
            else:
                # A unit keeps what it settled at: which others share its batch changes nothing.
                # <= ends eigenvalues of 0.
                is_close = (values - found).abs() <= how.tolerance * values.abs()
                found = torch.where(is_settled, found, values)
                is_settled = is_settled | is_close
            if bool(is_settled.all()):
                break
            vectors = self._normalized(products)
        assert found is not None
        return found

    def _starts(self, streams: Streams) -> list[Tensor]:
        """Random signs, drawn example by example where the block is split."""
        found = []
        for call, x in enumerate(self.calls):
            stream = streams[f"call {call} of {self.layer.name}"]
            if self.is_split:
                axis = self.layer.batch_axis
                found.append(signs_by_example(x.tensor, stream, self.batch_size, axis))
            else:
                found.append(random_signs(x.tensor, stream))
        return found

    def errors(self, on: Estimation, tensor_format: TensorFormat) -> Tensor:
        """``[U]`` squared errors of a format."""
        if not self.calls:
            return torch.zeros(1, dtype=torch.float64)
        inputs = [call.tensor.detach() for call in self.calls]
        changes = [on.rounded_input(self.layer.name, x, tensor_format) - x for x in inputs]
        doubled = [change.double() for change in changes]
        return self._dot(doubled, doubled)
