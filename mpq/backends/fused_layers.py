"""Layers that readers fuse into one: they share a precision, or the target refuses them."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from mpq.backends.fused_experts import expert_names
from mpq.errors import PrecisionError
from mpq.quantization.precision import ORIGINAL, Precision


def linear_names(layers: Iterable[str], modules: Mapping[str, nn.Module] | None) -> list[str]:
    """Names of layers, and of the linear modules and fused experts that are none."""
    known = modules or {}
    linear = (name for name, part in known.items() if isinstance(part, nn.Linear))
    return list(dict.fromkeys((*layers, *linear, *expert_names(known))))


def check_fused(tool: str, ties: Iterable[Sequence[str]], chosen: Mapping[str, Precision]) -> None:
    """Refuses an assignment that parts layers which readers fuse.

    Args:
        tool: Who asks, for the message.
        ties: Names of layers that are fused.
        chosen: Layer name to precision; what it does not name stays as it came.

    Raises:
        PrecisionError: Names two of them.
    """
    for tie in ties:
        found = {name: chosen.get(name, ORIGINAL) for name in tie}
        other = next((name for name in tie if found[name] != found[tie[0]]), None)
        if other is not None:
            raise PrecisionError(
                f"{tool} cannot hold the assignment: {tie[0]!r} is at {found[tie[0]]} and "
                f"{other!r} at {found[other]}, and readers fuse the two into one layer; search "
                f"with --to {tool}, which ties them"
            )
