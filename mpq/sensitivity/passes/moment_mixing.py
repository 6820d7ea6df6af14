"""From sums to means, from plain and guided second moments to one, from layers to weights."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from mpq.network.layer import Layer
from mpq.rounding.diagonal_blocks import diagonal
from mpq.sensitivity.passes.layer_moments import LayerMoments

OVER: Final = "are beyond float32, or a number is NaN or infinite"


@final
@dataclass(frozen=True, eq=False)
class SecondMoments:
    """How much an error in a layer's weight matters, as a quadratic form of each of its rows.

    Args:
        values: Layer to ``[G, K, k]``, float32 on the CPU, symmetric: of the inputs that the ``K``
            weights of a row meet, in the order of ``RowLayout.to_rows``; ``k = K``, or the inputs
            of a block along the diagonal (``moment_shape``). Of ``O`` rows the first ``O / G`` are
            the first group's, and so on. Layers that share a weight have one tensor.
        missing: Layer to the sentence that says why it has none.
        unguided: Layer to why its moment is the plain one, though a guided one was asked for.
    """

    values: Mapping[str, Tensor]
    missing: Mapping[str, str]
    unguided: Mapping[str, str]


@final
@dataclass(frozen=True, eq=False)
class Collected:
    """What some examples add to the second moments.

    Args:
        moments: Layer to its sums; taken out where they are read for the last time.
        missing: Layer to the sentence that says why it has none.
        called: Layers that the examples reach.
        num_examples: How many there are.
    """

    moments: dict[str, LayerMoments]
    missing: Mapping[str, str]
    called: Collection[str]
    num_examples: int


@final
class Mixing:
    """Second moments of what was collected from some parts of the examples.

    Args:
        layers: Whose they are.
        parts: One or more.
        guidance: See ``second_moments``.
        is_last: Whether the parts are used no more.
    """

    def __init__(
        self, layers: Sequence[Layer], parts: Sequence[Collected], guidance: float, is_last: bool
    ) -> None:
        self._layers, self._parts, self._guidance = layers, parts, guidance
        self._is_last = is_last
        self._num_examples = sum(part.num_examples for part in parts)
        self._values: dict[str, Tensor] = {}
        # A layer that is refused in one part is known in none.
        self._missing = {name: why for part in parts for name, why in part.missing.items()}
        self._calls = {name for part in parts for name in part.called}.difference(self._missing)
        self._unguided: dict[str, str] = {}

    def result(self) -> SecondMoments:
        """Of all layers, those that share a weight together."""
        for layers in sharing_a_weight(self._layers):
            self._add(layers)
        return SecondMoments(self._values, self._missing, self._unguided)

    def _add(self, layers: Sequence[Layer]) -> None:
        reached = [x for x in layers if x.name in self._calls]
        first = next((x for x in reached if x.kind != "embedding"), None)
        if first is None:
            for layer in layers:
                self._missing.setdefault(layer.name, _alone(layer, layer in reached))
            return
        # Their rows are the same: layers of other layouts have a weight of their own.
        alike = [x for x in layers if x.groups == first.groups]
        value = self._mixed([x.name for x in reached if x in alike])
        for layer in layers:
            if value is None:
                self._missing[layer.name] = f"squares of what layer {first.name!r} reads {OVER}"
            elif layer in alike:
                self._values[layer.name] = value
                self._missing.pop(layer.name, None)
            else:
                self._missing[layer.name] = (
                    f"layer {layer.name!r} shares its weight with {first.name!r}, whose rows lie "
                    f"in other groups ({first.groups}, not {layer.groups})"
                )

    def _mixed(self, names: Sequence[str]) -> Tensor | None:
        moments = self._moments(names)
        found = self._total(m.plain() for m in moments)
        if not _is_finite(found):
            return None
        if self._guidance:
            guided = self._total(m.guided() for m in moments)
            if not _is_finite(guided):
                why = f"squares of the gradient of its output, times what it reads, {OVER}"
                self._unguided |= dict.fromkeys(names, why)
                return found.div_(self._num_examples)
            if found.any() and not guided.any():
                self._unguided |= dict.fromkeys(names, "no gradient reaches it")
            found = _with_equal_traces(found, guided, self._guidance)
        return found.div_(self._num_examples)

    def _moments(self, names: Sequence[str]) -> list[LayerMoments]:
        every = [(part.moments, name) for part in self._parts for name in names]
        if self._is_last:
            # Taken out, so that large ones go when they have been read.
            return [moments.pop(name) for moments, name in every]
        return [moments[name] for moments, name in every]

    def _total(self, parts: Iterable[Tensor]) -> Tensor:
        """``[G, K, k]`` on the CPU."""
        first, *others = (part.cpu() for part in parts)
        # Of the last use the memory of the first is taken.
        first = first if self._is_last else first.clone()
        for other in others:
            first += other
        return first


def sharing_a_weight(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Layers in their order, those together that share a weight."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.weight_of or layer.name, []).append(layer)
    return list(found.values())


def _alone(layer: Layer, is_reached: bool) -> str:
    if not is_reached:
        return f"layer {layer.name!r} is reached by no example"
    return (
        f"layer {layer.name!r} is an embedding: each of its rows is looked up alone and all its "
        "numbers count alike, so that the nearest code is the best"
    )


def _is_finite(moment: Tensor) -> bool:
    # Both are NaN where a number is; no copy of the moment is made.
    return all(bool(end.isfinite()) for end in moment.aminmax())


def _with_equal_traces(plain: Tensor, guided: Tensor, guidance: float) -> Tensor:
    """``[G, K, k]``, group by group, in the memory of the first."""
    factors = mixing_factors(plain, guided, guidance)
    for moment, factor in zip((plain, guided), factors, strict=True):
        moment.mul_(factor[:, None, None])
    return plain.add_(guided)


def mixing_factors(plain: Tensor, guided: Tensor, guidance: float) -> tuple[Tensor, Tensor]:
    """What each of two moments ``[G, K, k]`` is multiplied with in their mix: ``[G]`` twice.

    Args:
        plain: The plain moments, whose traces the mix has.
        guided: The guided moments.
        guidance: Share of the guided ones.
    """
    traces, others = (diagonal(m).double().sum(dim=1) for m in (plain, guided))
    scale = (traces / others).float()  # [G]
    # Where no gradient arrives (or one that vanishes beside the inputs) there is nothing to mix.
    share = torch.where(scale.isfinite(), guidance, 0.0)
    scale = torch.where(scale.isfinite(), scale, 0.0)
    return 1 - share, share * scale
