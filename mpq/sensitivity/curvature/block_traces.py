"""Traces of the blocks that layers have in a Hessian, with standard errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.divergence import random_signs
from mpq.sensitivity.curvature.hessian_products import (
    Objective,
    SecondOrder,
    Variable,
    product,
    second_order,
)
from mpq.sensitivity.estimation import Estimation


@final
@dataclass(frozen=True, eq=False)
class Traces:
    """What was found of every layer's blocks, for the loss of one example in the mean.

    Args:
        weight: ``[L]`` traces of the weights' blocks; 0 for a layer that uses another's parameter.
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
        # Batches draw signs of their own, so that it is variances that were added up.
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
    their noise to that of the block itself. Signs are drawn anew for every batch: the noise of
    batches averages out, and its spread over the probes gives the standard error. Inputs have
    products of their own, so that what is found for weights does not depend on them.

    References: Hutchinson (1990), doi:10.1080/03610919008812866.

    Args:
        on: ``L`` layers and the examples.
        loss: Whose Hessian; see ``objective``.
        num_probes: ``K`` products for weights, and as many for inputs.
        generator: Draws the random signs.
        with_inputs: Whether traces of inputs are found, too; otherwise they are 0.
    """
    # A stream each, so that weights meet the same signs with and without inputs. A seed is an
    # int64, which 2**62 is well within.
    seeds = torch.randint(2**62, (2,), generator=generator)
    of_weights, of_inputs = (torch.Generator().manual_seed(int(seed)) for seed in seeds)
    sums = TraceSums(len(on.names))

    def draw(found: SecondOrder, size: int) -> Tensor:
        weight = _weight_draw(on.names, found, of_weights)
        return torch.stack([weight, _input_draw(on.names, found, of_inputs, size)])  # [2, L]

    for batch in on.batches("Hutchinson traces"):
        with second_order(on.network, batch, loss, with_inputs) as found:
            # All probes use one graph: a batch is run forward and backward once.
            drawn = torch.stack([draw(found, batch.size) for _ in range(num_probes)])  # [K, 2, L]
        sums.add(drawn.mean(dim=0), variance_of_mean(drawn), batch.size)
    return sums.traces(num_probes)


def variance_of_mean(draws: Tensor) -> Tensor:
    """Over the first axis, of independent draws; ``nan`` for a single one."""
    count = len(draws)
    if count == 1:
        # torch.var gives nan as well, but warns each time.
        return torch.full_like(draws[0], float("nan"))
    return draws.var(dim=0) / count


def _weight_draw(names: Sequence[str], found: SecondOrder, generator: torch.Generator) -> Tensor:
    """``[L]`` float64; 0 for a layer that the loss does not depend on."""
    drawn = dict(zip(found.weights, _draw(list(found.weights.values()), generator), strict=True))
    return torch.stack([drawn.get(name, torch.zeros(())).double() for name in names])


def _input_draw(
    names: Sequence[str], found: SecondOrder, generator: torch.Generator, batch_size: int
) -> Tensor:
    """``[L]`` float64, each over the numbers that one example's input has."""
    # One product for the inputs of all calls; its results come in this same order.
    drawn = iter(_draw([x for calls in found.inputs.values() for x in calls], generator))
    values = []
    for name in names:
        calls = found.inputs[name]
        # Per number of one example's input: the trace is multiplied by an error that is summed over
        # them.
        elements = sum(x.tensor.numel() for x in calls) / batch_size
        total = sum(float(next(drawn)) for _ in calls)
        values.append(total / elements if calls else 0.0)
    return torch.tensor(values, dtype=torch.float64)


def _draw(variables: Sequence[Variable], generator: torch.Generator) -> list[Tensor]:
    """``v^T H v`` with random signs, each variable's share of it, on the CPU."""
    # Signs are float64, so that products with them are summed in float64, whatever the network
    # computes in.
    signs = [random_signs(x.tensor, generator) for x in variables]
    products = product(variables, signs)
    return [(v * h).sum().cpu() for v, h in zip(signs, products, strict=True)]
