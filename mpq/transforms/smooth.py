"""SmoothQuant and AWQ: large input channels are handed on to the weights that meet them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.paired_gains import is_above_chance
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.network.reparametrization import Scaling
from mpq.quantization.precision import Precision
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.factors import smoothing
from mpq.transforms.layer_inputs import NUM_EXAMPLES, LayerInput, layer_inputs, magnitudes
from mpq.transforms.sites import Site, Sites, largest_by_label, merged
from mpq.transforms.trials import NetworkLoss, Rounded, Trial


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

    Where we depart from both papers: of each formula the exponent is that with the least squared
    error of the readers' outputs on a sample of what they read. Between the two and no factors at
    all the network's loss on calibration examples decides, site by site in the order of the
    network, the readers of this site and of all before it rounded. A gain has to be above chance
    (Student's t over examples, 5 %). Both at one precision, the middle one of the candidates. The
    rounded weights are held meanwhile.

    Args:
        grid: Exponents between 0 and 1 that are tried.
    """

    name: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "large input channels become large weights: SmoothQuant, AWQ"

    grid: int = 4

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise InputError(f"{self.name} needs at least one exponent; got {self.grid}")

    def found(self, on: Transforming) -> Found:
        """See ``Transform.found``; takes a pass over two examples, and some over up to 64."""
        sites = Sites.of(on.module, on.traced)
        if not sites.sites:
            return Found((), 0, sites.why_not)
        read = layer_inputs(on.module, on.batches(NUM_EXAMPLES), sites.readers)
        parameters = {name: p.detach() for name, p in on.module.named_parameters()}
        loss = NetworkLoss(on.module, list(on.batches(NUM_EXAMPLES)), on.metric)
        with torch.no_grad():
            places = _Place.all(sites.sites, parameters, read, on)
            changes: tuple[Scaling, ...] = ()
            for place in track(places, "smoothing channels"):
                tried = [place.rounded(np.ones(place.site.size))]
                factors = [min(each, key=place.error) for each in self._tried(place)]
                tried += map(place.rounded, factors)
                losses = [loss.of(layers) for layers in tried]
                best = int(np.argmin([found.mean() for found in losses]))
                # Of many sites some would seem to gain by chance.
                if not is_above_chance(losses[0] - losses[best]):
                    best = 0
                loss.set(tried[best])
                if best:
                    changes = (*changes, *place.site.changes(factors[best - 1]))
        return Found(merged(changes), len(sites.sites), sites.why_not)

    def _tried(self, place: "_Place") -> tuple[list[Array], list[Array]]:
        """SmoothQuant's and AWQ's factors at every exponent."""
        site = place.site
        largest, mean, weights = (np.zeros(site.size) for _ in range(3))
        for trial in place.trials:
            along, inputs = trial.reader.weight, trial.reader.inputs
            columns = magnitudes(trial.weight, along.axis)
            for values, labels, into in (
                (columns, along.labels, weights),
                (trial.read.maximum, inputs, largest),
                (trial.read.mean, inputs, mean),
            ):
                np.maximum(into, largest_by_label(values, labels, site.size), out=into)
        alphas = [step / self.grid for step in range(1, self.grid + 1)]
        smooth = [smoothing(largest, weights, a, 1 - a, site.is_free) for a in alphas]
        return smooth, [smoothing(mean, weights, a, 0.0, site.is_free) for a in alphas]


@final
@dataclass(frozen=True, eq=False)
class _Place:
    """A site, and the layers that read it.

    Args:
        site: Whose factors are chosen.
        trials: Its readers.
        precision: That these are rounded to.
    """

    site: Site
    trials: list[Trial]
    precision: Precision

    @classmethod
    def all(
        cls,
        sites: Sequence[Site],
        parameters: Mapping[str, Tensor],
        read: Mapping[str, LayerInput],
        on: Transforming,
    ) -> "list[_Place]":
        """Sites whose readers the sample reaches, and no other site before has."""
        found: list[_Place] = []
        taken: set[str] = set()
        for site in sites:
            names = {reader.weight.parameter for reader in site.readers}
            if not names & taken and names <= read.keys():
                taken |= names
                weights = [(r, r.weight.parameter) for r in site.readers]
                trials = [
                    Trial(r, parameters[n], read[n], on.ranges, on.numerics) for r, n in weights
                ]
                found.append(cls(site, trials, on.precision))
        return found

    def rounded(self, factors: Array) -> dict[str, Rounded]:
        """The readers with these factors, by weight."""
        return {t.reader.weight.parameter: t.rounded(factors, self.precision) for t in self.trials}

    def error(self, factors: Array) -> float:
        """Sum of the readers' own errors: logarithms, so that none outweighs the others."""
        return sum(trial.error(factors, self.precision) for trial in self.trials)
