"""What a deployment target leaves of the candidates, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

from torch import nn

from mpq.backends.fused_layers import linear_names
from mpq.backends.target import Target
from mpq.errors import PrecisionError
from mpq.network.layer import Layer, merge_ties
from mpq.quantization.precision import ORIGINAL, Precision


@final
@dataclass(frozen=True)
class Shippable:
    """Candidates that the exporter accepts, always: what a search for a target chooses from.

    Args:
        allowed: Layer name to its candidates.
        unshipped: Layer name to why it stays as it came: the target holds none of its candidates.
        ties: Layers that share a precision, those that the target's readers fuse among them.
    """

    allowed: Mapping[str, tuple[Precision, ...]]
    unshipped: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]

    @classmethod
    def of(
        cls,
        target: Target,
        layers: Sequence[Layer],
        ties: Sequence[Sequence[str]],
        wanted: Mapping[str, tuple[Precision, ...]],
        fixed: Mapping[str, Precision],
        modules: Mapping[str, nn.Module] | None = None,
    ) -> Self:
        """Asks the target for every layer and candidate.

        Args:
            target: Where the result is to run.
            layers: The network's.
            ties: Layers that share a precision anyway; the target's own ties are added.
            wanted: Layer name to candidates, for every layer.
            fixed: Layer name to the precision that it must have.
            modules: Name to module of the user's network; ``None``: not asked for.

        Raises:
            PrecisionError: If the target cannot hold a fixed precision, or no candidate anywhere.
        """
        by_name = {layer.name: layer for layer in layers}
        fused = target.ties(linear_names(by_name, modules))
        apart = _fused_with_others(fused, by_name)
        _check_fixed(target, by_name, fixed, modules, apart)
        ties = merge_ties([*ties, *fused], list(by_name))
        groups = [*ties, *((name,) for name in by_name)]
        allowed: dict[str, tuple[Precision, ...]] = {}
        unshipped: dict[str, str] = {}
        for group in groups:
            if group[0] in allowed:  # alone, and in a tie before
                continue
            common = [p for p in wanted[group[0]] if all(p in wanted[name] for name in group)]
            tied = [by_name[name] for name in group]
            left = next((apart[name] for name in group if name in apart), "")
            refusals = {
                p: _refusal(target, tied, p, modules, "" if p == ORIGINAL else left) for p in common
            }
            held = tuple(p for p, why in refusals.items() if not why)
            allowed |= dict.fromkeys(group, held or (ORIGINAL,))
            if not held:
                why = next(iter(refusals.values()), "tied layers have no candidate in common")
                unshipped |= dict.fromkeys(group, why)
        if target.needs_all and unshipped:
            name, why = next(iter(unshipped.items()))
            raise PrecisionError(
                f"{target.name} runs networks all of whose layers it holds, and layer {name!r} "
                f"takes none of its candidates: {why}"
            )
        if len(unshipped) == len(by_name):
            raise PrecisionError(
                f"{target.name} holds none of the candidates in any layer: "
                f"{next(iter(unshipped.values()))}. It holds {target.holds}"
            )
        return cls(allowed, unshipped, ties)


def _fused_with_others(
    fused: Sequence[Sequence[str]], layers: Mapping[str, Layer]
) -> dict[str, str]:
    """Layer name to why it stays: readers fuse it with one that is no layer of the search."""
    found: dict[str, str] = {}
    for tie in fused:
        other = next((name for name in tie if name not in layers), None)
        if other is not None:
            why = f"readers fuse it with {other!r}, which is left out"
            found |= {name: why for name in tie if name in layers}
    return found


def _refusal(
    target: Target,
    layers: Sequence[Layer],
    precision: Precision,
    modules: Mapping[str, nn.Module] | None,
    left: str = "",
) -> str:
    """Of the first layer that cannot be held; with its name, where it is one of several."""
    # As it came, a layer is held by targets that have floating point.
    if left or (precision == ORIGINAL and not target.needs_all):
        return left
    for layer in layers:
        why = target.why_not(layer, precision, modules)
        if why:
            return why if len(layers) == 1 else f"{layer.name}: {why}"
    return ""


def _check_fixed(
    target: Target,
    layers: Mapping[str, Layer],
    fixed: Mapping[str, Precision],
    modules: Mapping[str, nn.Module] | None,
    apart: Mapping[str, str],
) -> None:
    for name, precision in fixed.items():
        left = apart.get(name, "") if precision != ORIGINAL else ""
        why = _refusal(target, [layers[name]], precision, modules, left)
        if why:
            raise PrecisionError(
                f"layer {name!r} is fixed at {precision} (--fix), which {target.name} cannot hold: "
                f"{why}"
            )
