"""Names with reasons, in a sentence."""

from collections.abc import Mapping


def with_reasons(layers: Mapping[str, str]) -> str:
    """The first of some layers, each with a reason, and how many more."""
    shown = "; ".join(f"{name} ({why})" for name, why in list(layers.items())[:3])
    return shown + (f"; and {len(layers) - 3} more" if len(layers) > 3 else "")
