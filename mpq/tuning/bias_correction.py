"""Biases that take the mean error of a quantized network's layers back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Self, final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpq._support.progress import track
from mpq.backends.simulate import prepared, quantizer_of, transformed, with_precisions
from mpq.network.examples import Calibration
from mpq.network.layer import WEIGHTLESS
from mpq.network.modules import share_parameters
from mpq.network.same_start import begin_alike
from mpq.problem.assignment import Assignment
from mpq.tuning.channel_means import Channels, channels_of
from mpq.tuning.tuned_vector import TunedVector, tuned_parameters, tuned_vectors

NO_BIAS: Final = "has no bias, or one that is no vector of the model as it came"
SHARED: Final = "shares its bias with another module"
NO_STATISTICS: Final = "is a BatchNorm without running statistics, or without weight and bias"
PARTLY: Final = "is not called once in every pass"
UNLIKE: Final = "gives other shapes, or numbers that are not finite, in the quantized network"


@final
@dataclass(frozen=True, eq=False)
class Corrected:
    """A quantized network with other biases.

    Args:
        assignment: With the new ones.
        moved: Modules whose biases (of a BatchNorm also the weight) are others now.
        left: Layers and BatchNorms whose own stay, and why.
    """

    assignment: Assignment
    moved: tuple[str, ...]
    left: Mapping[str, str]


def bias_corrected(model: nn.Module, assignment: Assignment, data: Calibration) -> Corrected:
    r"""Moves biases in the order of calls, each for the network as it is corrected so far.

    .. math:: b' = b - \mathrm{mean}\,(\tilde{y} - y)

    with ``y`` a layer's output in the float network and :math:`\tilde{y}` in the quantized one, the
    mean over examples and positions: empirical bias correction of Nagel et al. 2019
    (arXiv:1906.04721), for the inputs of the quantized network, as Finkelstein et al. 2019
    (arXiv:1906.03193) iterate it. The bias of a convolution into which BatchNorm was folded is the
    BatchNorm's.

    A BatchNorm that was not folded has its statistics re-estimated for the inputs that it meets in
    the quantized network: its outputs get the mean and the variance that they have in the float
    network, so that nothing moves where nothing is quantized. (The calibration examples' own
    statistics, which others take, are not those of training.) That is done to weight and bias,
    which can be the same function:

    .. math:: \gamma' = \gamma \sqrt{\frac{v + \epsilon}{\tilde{v} + \epsilon}}, \quad
        \beta' = \beta + \frac{\gamma (m - \mu) - \gamma' (\tilde{m} - \mu)}
        {\sqrt{\sigma^2 + \epsilon}}

    with ``m`` and ``v`` mean and variance of its inputs over the examples, in the float network and
    in the quantized one, and :math:`\mu` and :math:`\sigma^2` its running ones.

    Takes one forward pass of the float network over the examples, one of the quantized network
    (up to the layers in question) for every tensor that layers read, and a copy of the weights.

    Args:
        model: As the user gave it; it stays as it is.
        assignment: Of a search.
        data: Examples to correct with.

    Raises:
        MismatchError: If the assignment belongs to another network.
    """
    pair = _Pair.of(model, assignment)
    sites, left = pair.sites()
    known = channels_of(pair.original, list(sites), data)
    once = {n: found for n, found in known.items() if found.calls == data.num_batches}
    left |= dict.fromkeys(sites.keys() - once.keys(), PARTLY)
    moved: list[str] = []
    stages = groupby(once, lambda name: once[name].stage)
    for _, stage in track([(i, list(names)) for i, names in stages], "correcting biases"):
        now = channels_of(pair.module, stage, data, stops=True)
        for name in stage:
            if name in now and sites[name].correct(once[name], now[name]):
                moved.append(name)
            else:
                left[name] = UNLIKE
    vectors = tuned_parameters(pair.vectors, pair.own, assignment.tuned)
    return Corrected(replace(assignment, tuned=vectors), tuple(moved), left)


@final
@dataclass(frozen=True, eq=False)
class _Pair:
    """The float network and the quantized one, opened and folded alike.

    Args:
        original: In float.
        module: Quantized.
        own: The user's model with its transformations, which vectors are of.
        vectors: All vectors of the quantized network.
        layers: That are quantized.
    """

    original: nn.Module
    module: nn.Module
    own: nn.Module
    vectors: Sequence[TunedVector]
    layers: Sequence[str]

    @classmethod
    def of(cls, model: nn.Module, assignment: Assignment) -> Self:
        changed, rest = transformed(model, assignment)
        own, seed = share_parameters(changed), rest.metadata.allow_randomness
        # Without what was changed before: means are those of the network as it came.
        original, module = prepared(model, replace(assignment, tuned=None)), prepared(own, rest)
        # Before rounded weights take their places.
        vectors, _ = tuned_vectors(module, own, [layer.name for layer in rest.layers], rest.folded)
        module = with_precisions(module, rest, quantizer_of(rest))
        without = ("embedding", *WEIGHTLESS)  # what has no bias
        names = [layer.name for layer in rest.layers if layer.kind not in without]
        return cls(begin_alike(original, seed), begin_alike(module, seed), own, vectors, names)

    def sites(self) -> tuple[dict[str, "_Site"], dict[str, str]]:
        """What can be corrected; and what cannot, with the reason."""
        of_leaf = {id(leaf): vector for vector in self.vectors for leaf in vector.leaves}
        users: dict[int, int] = {}
        for _, part in self._parts():
            users[id(part.bias)] = users.get(id(part.bias), 0) + 1
        sites, left = {}, {}
        for name, part in self._parts():
            bias, norm = of_leaf.get(id(part.bias)), None
            if isinstance(part, _BatchNorm):
                norm = _Norm.of(part, of_leaf)
                if norm is None or bias is None:
                    left[name] = NO_STATISTICS
                    continue
            if bias is None:
                left[name] = NO_BIAS
            elif users[id(part.bias)] > 1 or len(bias.leaves) > 1:
                left[name] = SHARED
            else:
                sites[name] = _Site(bias, norm)
        return sites, left

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        layers = set(self.layers)
        for name, part in self.module.named_modules():
            if name in layers or isinstance(part, _BatchNorm):
                yield name, part


@final
@dataclass(frozen=True, eq=False)
class _Norm:
    """A BatchNorm that was not folded.

    Args:
        module: It.
        weight: Its weight.
    """

    module: _BatchNorm
    weight: TunedVector

    @classmethod
    def of(cls, part: _BatchNorm, of_leaf: Mapping[int, TunedVector]) -> Self | None:
        weight = of_leaf.get(id(part.weight))
        if part.running_mean is None or weight is None or len(weight.leaves) > 1:
            return None
        return cls(part, weight)


@final
@dataclass(frozen=True, eq=False)
class _Site:
    """A bias that can be corrected.

    Args:
        bias: It.
        norm: The BatchNorm that it is of; ``None``: it is a layer's.
    """

    bias: TunedVector
    norm: _Norm | None

    def correct(self, before: Channels, now: Channels) -> bool:
        """Takes the mean error back; ``False`` where the two cannot be compared.

        Args:
            before: In the float network.
            now: In the quantized one.
        """
        if now.count != before.count or now.calls != before.calls:
            return False
        if self.norm is None:
            moves = [(self.bias, before.mean - now.mean)]
        else:
            moves = self._of_norm(self.norm, before, now)
        if not all(bool(change.isfinite().all()) for _, change in moves):
            return False
        for vector, change in moves:
            vector.move(change)
        return True

    def _of_norm(
        self, norm: "_Norm", before: Channels, now: Channels
    ) -> list[tuple[TunedVector, Tensor]]:
        mean, variance, eps = norm.module.running_mean, norm.module.running_var, norm.module.eps
        assert mean is not None
        assert variance is not None
        gain = norm.module.weight.detach().double()
        other = gain * ((before.variance + eps) / (now.variance + eps)).sqrt()
        centred = gain * (before.mean - mean) - other * (now.mean - mean)
        return [
            (norm.weight, other - gain),
            (self.bias, centred / (variance.double() + eps).sqrt()),
        ]
