"""What a device is asked to run at once."""

from dataclasses import dataclass, replace
from math import prod
from typing import Final, Literal, final

from mpq._support.bounds import check_whole
from mpq.errors import InputError, UnknownNameError
from mpq.network.layer import Layer

Phase = Literal["prefill", "decode"]
PHASES: Final[tuple[str, ...]] = ("prefill", "decode")
"""What a network that generates text can be doing: reading the prompt, or adding a token."""


@final
@dataclass(frozen=True)
class Workload:
    """How many examples at once, and how many tokens of each.

    A layer that reads many tokens at once (prefill) is bound by arithmetic, one that reads a
    single token (decode) by the traffic of its weights: the best formats differ.

    Args:
        batch_size: Examples that are run at once.
        phase: ``prefill``: a whole prompt; ``decode``: one new token of every example; ``None``:
            the layers as they were traced.
        tokens: Length of the prompt, for ``prefill``; ``None``: as many as were traced. ``decode``
            takes none, as it is one by definition.

    Raises:
        UnknownNameError: If there is no such phase.
        InputError: If a number is below 1, or tokens are given for anything but ``prefill``.
    """

    batch_size: int = 1
    phase: str | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"the batch size is at least 1; got {self.batch_size}")
        check_whole("batch_size", self.batch_size)
        check_whole("tokens", self.tokens or 0)
        if self.phase is not None and self.phase not in PHASES:
            raise UnknownNameError("phase", self.phase, PHASES)
        if self.tokens is None:
            return
        if self.phase is None:
            raise InputError(f"{self.tokens} tokens of what? Say phase prefill too")
        if self.phase == "decode":
            raise InputError(
                f"decode runs one new token of every example; got {self.tokens} tokens: leave them "
                "out, or say phase prefill"
            )
        if self.tokens < 1:
            raise InputError(f"a prompt has at least 1 token; got {self.tokens}")

    def of(self, layer: Layer) -> Layer:
        """The layer as it runs in this workload: shapes, elements and MACs at so many tokens.

        A layer without a token axis stays as it is, and so does every layer's weight. Of a layer
        that is called several times, the calls are scaled alike. The products inside an attention
        are no layers: they are counted where a cache is searched (``AttentionPrice``).
        """
        traced, tokens = tokens_of(layer), 1 if self.phase == "decode" else self.tokens
        if traced is None or tokens is None or tokens == traced:
            return layer
        # An embedding reads ids, whose axes are all tokens.
        features = () if layer.kind == "embedding" else layer.input_shape[-1:]
        return replace(
            layer,
            input_shape=(tokens, *features),
            output_shape=(tokens, *layer.output_shape[-1:]),
            input_elements=_scaled(layer.input_elements, tokens, traced),
            output_elements=_scaled(layer.output_elements, tokens, traced),
            macs=_scaled(layer.macs, tokens, traced),
        )


def tokens_of(layer: Layer) -> int | None:
    """Tokens of one example at a layer's first call; ``None`` if it has no token axis.

    All axes of a linear layer's input but the last hold tokens, and all axes of an embedding's.
    Convolutions, and linear layers that read one vector per example, have no token axis.

    >>> tokens_of(Layer("q", "linear", (64, 64), 64, (12, 64), (12, 64), 768, 768, 49152))
    12
    """
    axes = {"linear": layer.input_shape[:-1], "embedding": layer.input_shape}.get(layer.kind)
    return prod(axes) if axes else None


def _scaled(count: int, tokens: int, traced: int) -> int:
    """Rounded up: calls of unlike lengths need not divide evenly."""
    return -(-count * tokens // traced)
