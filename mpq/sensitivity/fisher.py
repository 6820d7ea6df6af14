"""Diagonal Fisher information: squared gradients as the curvature of every single number."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.examples import Batch
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.gradient_squares import squared_products
from mpq.sensitivity.passes.labels import check_labels, fisher_gradient, labelled_passes
from mpq.sensitivity.passes.one_device import on_one_device
from mpq.sensitivity.passes.weight_changes import WeightChanges
from mpq.sensitivity.passes.weight_gradients import CallGradients


@final
@dataclass(frozen=True)
class DiagonalFisher(SensitivityEstimator):
    r"""Squared rounding errors, each times the Fisher information of its number.

    .. math:: s_{\ell b} = \tfrac12 \sum_i F_{\ell i} \, (Q_b(W_\ell) - W_\ell)_i^2
        + \tfrac12 \, \mathrm{mean}_n \sum_i (g^x_{n \ell i})^2
            (Q_b(x_{n \ell}) - x_{n \ell})_i^2,
        \quad F_{\ell i} = \mathrm{mean}_n (g^W_{n \ell i})^2

    with ``g`` the gradients of each example's log-likelihood. The second-order Taylor term of the
    KL divergence, provided rounding errors of different numbers do not interact; in nats per
    example. SqueezeLLM (Kim et al. 2023, arXiv:2306.07629) weighs the errors of its codebooks so;
    LQ-LoRA (Guo et al. 2023, arXiv:2311.12023) those of its bit allocation. Departs from them in
    pricing inputs as well, in the factor one half, and in the labels: theirs are the data's (the
    empirical Fisher information), ours by default drawn from the network itself, which is the
    curvature of the divergence and needs no targets.

    Layers that share a parameter are priced each with its own share of the gradient. Weights are
    rounded once for every batch, in tiles (``squared_products``): memory does not grow with the
    network, and larger batches are faster.

    Args:
        labels: ``sampled`` or ``targets``; see ``fisher_gradient``.
        seed: Seed of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "diagonal Fisher x squared error (SqueezeLLM), 1 forward + 1 backward"
    prices_channels: ClassVar[bool] = True
    prices_caches: ClassVar[bool] = True

    labels: str = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            DataError: If targets are wanted and there are none.
        """
        found, examples = _Fisher(on), 0
        for batch in labelled_passes(on, found, fisher_gradient, self.labels, self.seed):
            found.end(batch)
            examples += batch.size
        table = on.table(0.5 * found.sums() / examples, self.name)
        return Sensitivity(table, channels=found.by_channel(0.5 / examples) if on.divides else {})


class _Fisher:
    """Sums over examples, while backward passes run."""

    def __init__(self, on: Estimation) -> None:
        self.on = on
        self._waiting: dict[str, list[CallGradients]] = {}  # of layers that are called again
        # On each layer's device, so that no pass waits for a transfer.
        self._by_weight = {
            name: WeightChanges.of_original(on, name).no_squares() for name in on.names
        }
        self._by_input = {
            name: found.new_zeros(len(on.inputs.formats)) for name, found in self._by_weight.items()
        }

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        return self.on.inputs.is_rounding

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        found = self._by_input[tap.name]
        for column, tensor_format in self.on.inputs.rounding:
            rounded = self.on.rounded_input(tap.name, x, tensor_format)
            product = (rounded.float() - x.float()) * g.float()
            found[column] += product.square().sum(dtype=torch.float64).to(found.device)

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        calls = self._waiting.setdefault(tap.name, [])
        calls.append(tap.weight_gradients(x, g.float()))
        if tap.layer.calls == 1:
            self._price(tap.name, tap.num_examples)

    def end(self, batch: Batch) -> None:
        """Layers that are called several times are whole only now."""
        for name in list(self._waiting):
            self._price(name, batch.size)

    def _price(self, name: str, num_examples: int) -> None:
        changes = WeightChanges.of_original(self.on, name)
        with torch.no_grad():
            found = squared_products(self._waiting.pop(name), changes, num_examples)
        self._by_weight[name] += found

    def sums(self) -> Array:
        """``[L, B]`` squared products of errors and gradients, of weights and of inputs."""
        summed = [found.sum(dim=0) for found in self._by_weight.values()]
        weights, inputs = (
            on_one_device(sums).cpu().numpy() for sums in (summed, self._by_input.values())
        )
        return self.on.weights.by_candidate(weights) + self.on.inputs.by_candidate(inputs)

    def by_channel(self, factor: float) -> dict[str, Array]:
        """Layer name to ``[O, B]``, the weights' part of the sums times a factor."""
        return {
            name: factor * self.on.weights.by_candidate(found.cpu().numpy())
            for name, found in self._by_weight.items()
        }
