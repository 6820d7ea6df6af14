"""SmoothQuant and AWQ: large input channels are handed on to the weights that meet them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.network.reparametrization import Change
from mpq.network.reparametrized import changed
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.factors import smoothing
from mpq.transforms.layer_inputs import LayerInput, layer_inputs
from mpq.transforms.sites import Site, Sites, largest_by_label, merged
from mpq.transforms.trial_errors import Trial

NUM_EXAMPLES: Final = 64
"""Examples whose inputs are looked at."""


@final
@dataclass(frozen=True)
class Smooth(Transform):
    r"""Inputs of a layer are divided by channel, its weight's columns multiplied.

    .. math:: s_c = \max|x_c|^\alpha / \max|w_c|^{1 - \alpha} \quad\text{or}\quad s_c =
        \overline{|x_c|}^\alpha

    The first is SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), the second AWQ (Lin et al. 2023,
    arXiv:2306.00978). What makes the channels takes up the division: a normalization's weight and
    bias, or a layer from whose outputs only operations lead here that commute with a factor (values
    to the output projection, the upper half of a gated feed-forward network to its lower one). All
    layers that read the channels share the factors, also by head where several queries share one.

    Where we depart from both papers: for every site, formula and exponent are those with the least
    squared error of the readers' outputs on a sample of what they read, weights and inputs rounded
    at the fewest, a middle and the most bits of the candidates (the mean of the logarithms), among
    them no factors at all.

    Args:
        grid: Exponents between 0 and 1 that are tried.
    """

    name: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "large input channels become large weights: SmoothQuant, AWQ"

    grid: int = 8

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise InputError(f"{self.name} needs at least one exponent; got {self.grid}")

    def found(self, on: Transforming) -> Found:
        """See ``Transform.found``; takes a pass over two examples, and one over up to 64."""
        sites = Sites.of(on.module, on.traced)
        if not sites.sites:
            return Found((), 0, sites.why_not)
        read = layer_inputs(on.module, on.batches(NUM_EXAMPLES), sites.readers)
        parameters = {name: p.detach() for name, p in on.module.named_parameters()}
        changes: tuple[Change, ...] = ()
        for site in track(sites.sites, "smoothing channels"):
            now = _now(site, parameters, changes)
            if any(name not in read for name in now):
                continue  # a layer that the sample does not reach
            factors = self._best(site, now, read, on)
            if not bool((factors == 1).all()):
                changes = merged([*changes, *site.changes(factors)])
        return Found(changes, len(sites.sites), sites.why_not)

    def _best(
        self, site: Site, weights: dict[str, Tensor], read: dict[str, LayerInput], on: Transforming
    ) -> Array:
        """``[n]`` the factors with the least error of outputs."""
        trials = [
            Trial(r, weights[r.weight.parameter], read[r.weight.parameter], on.ranges, on.numerics)
            for r in site.readers
        ]
        tried = list(self._tried(site, trials))
        with torch.no_grad():
            errors = [sum(t.error(factors, on.precisions) for t in trials) for factors in tried]
        return tried[int(np.argmin(errors))]

    def _tried(self, site: Site, trials: Sequence[Trial]) -> Iterator[Array]:
        """No factors, which win a tie; then both formulas at every exponent."""
        yield np.ones(site.size)
        largest, mean, weights = (np.zeros(site.size) for _ in range(3))
        for trial in trials:
            along, inputs = trial.reader.weight, trial.reader.inputs
            columns = trial.weight.double().movedim(along.axis, 0).flatten(1).abs().amax(dim=1)
            of_weight = largest_by_label(columns.cpu().numpy(), along.labels, site.size)
            weights = np.maximum(weights, of_weight)
            for values, into in ((trial.read.maximum, largest), (trial.read.mean, mean)):
                np.maximum(into, largest_by_label(values, inputs, site.size), out=into)
        for step in range(1, self.grid + 1):
            alpha = step / self.grid
            yield smoothing(largest, weights, alpha, 1 - alpha, site.is_free)
            yield smoothing(mean, weights, alpha, 0.0, site.is_free)


def _now(
    site: Site, parameters: dict[str, Tensor], changes: Sequence[Change]
) -> dict[str, Tensor]:
    """Weights of a site's readers with the changes so far."""
    names = dict.fromkeys(reader.weight.parameter for reader in site.readers)
    return {
        name: changed(parameters[name].float(), [c for c in changes if c.parameter == name])
        for name in names
    }
