"""Traces of the blocks that layers have in a Hessian, with standard errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.divergence import random_signs
from mpq.network.layer import Layer
from mpq.sensitivity.curvature.hessian_products import (
    Objective,
    SecondOrder,
    Variable,
    product,
    second_order,
)
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.streams import Streams, signs_by_example


@final
@dataclass(frozen=True, eq=False)
class Traces:
    """What was found of every layer's blocks, for the loss of one example in the mean.

    Args:
        weight: ``[L]`` traces of the weights' blocks, of each layer's own share in a parameter that
            several use; see ``own_weights``.
        weight_error: ``[L]`` their standard errors, ``nan`` where one draw says nothing of them.
        input: ``[L]`` traces of the inputs' blocks, per number that an example's input has.
        input_error: ``[L]`` their standard errors.
        num_probes: Backward passes, or products with the Hessian, over all data.
    """

    weight: Array
    weight_error: Array
    input: Array
    input_error: Array
    num_probes: int

    def with_more(self, other: "Traces") -> "Traces":
        """The mean of these and of others that were drawn independently, weighted by probes."""
        total = self.num_probes + other.num_probes
        mine, theirs = self.num_probes / total, other.num_probes / total
        # Independent draws: variances add up, times the squares of the shares. An error of nan
        # (from a single draw) stays nan.
        return Traces(
            mine * self.weight + theirs * other.weight,
            np.hypot(mine * self.weight_error, theirs * other.weight_error),
            mine * self.input + theirs * other.input,
            np.hypot(mine * self.input_error, theirs * other.input_error),
            total,
        )

    def is_within(self, tolerance: float) -> bool:
        """Whether every standard error is known and at most this share of its trace."""
        # Comparing with nan gives False, so that an unknown error is never small enough; <= admits
        # a trace of exactly 0, of a layer that the loss does not depend on.
        of_weights = self.weight_error <= tolerance * abs(self.weight)
        of_inputs = self.input_error <= tolerance * abs(self.input)
        return bool(of_weights.all() and of_inputs.all())


def until_within(
    draw: Callable[[int], Traces], num_probes: int, tolerance: float, first: int
) -> Traces:
    """Draws twice as many probes again and again, until the standard errors are small.

    Args:
        draw: From a number of probes to independently drawn traces.
        num_probes: At most so many.
        tolerance: Largest relative standard error of a layer; 0: all probes at once.
        first: How many to begin with.
    """
    found = draw(min(first, num_probes) if tolerance > 0 else num_probes)
    # Doubling overshoots by a factor of two at most, and looks at the errors only a few times:
    # every look is another chance to stop at errors that are small by luck.
    while found.num_probes < num_probes and not found.is_within(tolerance):
        found = found.with_more(draw(min(found.num_probes, num_probes - found.num_probes)))
    return found


class TraceSums:
    """Adds up batches.

    Args:
        num_layers: Number of layers ``L``, the length of every sum.
    """

    def __init__(self, num_layers: int) -> None:
        # In float64, because the sums grow over all batches while what each batch adds does not.
        self._mean = torch.zeros(2, num_layers, dtype=torch.float64)  # of weights, of inputs
        self._variance = torch.zeros(2, num_layers, dtype=torch.float64)
        self._examples = 0

    def add(self, mean: Tensor, variance: Tensor, batch_size: int) -> None:
        """Of one batch, ``[2, L]``: traces summed over its examples, and their variances."""
        self._mean += mean
        self._variance += variance
        self._examples += batch_size

    def traces(self, num_probes: int) -> Traces:
        """Of all batches."""
        mean = (self._mean / self._examples).numpy()
        # What is added draws signs of its own, so that it is variances that were added up.
        error = (self._variance.sqrt() / self._examples).numpy()
        return Traces(mean[0], error[0], mean[1], error[1], num_probes)


def hutchinson_traces(
    on: Estimation,
    loss: Objective,
    num_probes: int,
    generator: torch.Generator,
    with_inputs: bool = False,
) -> Traces:
    r"""Traces of the Hessian's blocks from products with random signs.

    .. math:: \mathrm{Tr} H_\ell = E\, v_\ell^T (H v)_\ell

    One product serves every layer, so that the cross terms :math:`v_\ell^T H_{\ell k} v_k` add
    their noise to that of the block itself. Signs of a weight are the same in every batch, so that
    a probe meets the Hessian of all examples, however these are split into batches (where each
    example has a loss of its own). Inputs have products and signs of their own, drawn for each
    example: what is found for weights does not depend on them.

    References: Hutchinson (1990), doi:10.1080/03610919008812866.

    Args:
        on: ``L`` layers and the examples.
        loss: Whose Hessian; see ``objective``.
        num_probes: ``K`` products for weights, and as many for inputs.
        generator: Draws the random signs.
        with_inputs: Whether traces of inputs are found, too; otherwise they are 0.
    """
    streams = Streams.of(generator)
    drawn = torch.zeros(num_probes, 2, len(on.names), dtype=torch.float64)  # [K, 2, L]
    examples = 0
    for batch in on.batches("Hutchinson traces"):
        with second_order(on.network, batch, loss, with_inputs) as found:
            # All probes use one graph: a batch is run forward and backward once.
            for probe in range(num_probes):
                weight = _weight_draw(on.names, found, streams, probe)
                input_ = _input_draw(on.network.layers, found, streams, probe, batch.size)
                drawn[probe] += torch.stack([weight, input_])
        examples += batch.size
    # Probes are independent, batches of one probe are not: it is their sums whose spread counts.
    sums = TraceSums(len(on.names))
    sums.add(drawn.mean(dim=0), variance_of_mean(drawn), examples)
    return sums.traces(num_probes)


def variance_of_mean(draws: Tensor) -> Tensor:
    """Over the first axis, of independent draws; ``nan`` for a single one."""
    count = len(draws)
    if count == 1:
        # torch.var gives nan as well, but warns each time.
        return torch.full_like(draws[0], float("nan"))
    return draws.var(dim=0) / count


def _weight_draw(names: Sequence[str], found: SecondOrder, streams: Streams, probe: int) -> Tensor:
    """``[L]`` float64; 0 for a layer that the loss does not depend on."""
    # A stream per layer: a batch that does not reach a layer leaves the others' signs as they are.
    signs = [
        random_signs(x.tensor, streams.again(f"probe {probe} weight {name}"))
        for name, x in found.weights.items()
    ]
    drawn = dict(zip(found.weights, _forms(list(found.weights.values()), signs), strict=True))
    return torch.stack([drawn.get(name, torch.zeros(())).double() for name in names])


def _input_draw(
    layers: Sequence[Layer], found: SecondOrder, streams: Streams, probe: int, batch_size: int
) -> Tensor:
    """``[L]`` float64, each over the numbers that one example's input has."""
    axes = {layer.name: layer.batch_axis for layer in layers}
    variables, signs = [], []
    for name, calls in found.inputs.items():
        for call, x in enumerate(calls):
            stream = streams[f"probe {probe} call {call} of {name}"]
            variables.append(x)
            signs.append(signs_by_example(x.tensor, stream, batch_size, axes[name]))
    # One product for the inputs of all calls; its results come in this same order.
    drawn = iter(_forms(variables, signs))
    values = []
    for layer in layers:
        calls = found.inputs[layer.name]
        # Per number of one example's input: the trace is multiplied by an error that is summed over
        # them.
        elements = sum(x.tensor.numel() for x in calls) / batch_size
        total = sum(float(next(drawn)) for _ in calls)
        # A batch may reach no row of an expert.
        values.append(total / elements if elements else 0.0)
    return torch.tensor(values, dtype=torch.float64)


def _forms(variables: Sequence[Variable], signs: Sequence[Tensor]) -> list[Tensor]:
    """``v^T H v`` with random signs, each variable's share of it, on the CPU."""
    # Signs are float64, so that products with them are summed in float64, whatever the network
    # computes in.
    products = product(variables, signs)
    return [(v * h).sum().cpu() for v, h in zip(signs, products, strict=True)]
