"""A layer as solvers and profiles see it: numbers and names, no tensors."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

KEYS: Final = "k_cache"
UNROTATED_KEYS: Final = "unrotated_k_cache"
VALUES: Final = "v_cache"
CACHES: Final = (KEYS, UNROTATED_KEYS, VALUES)
"""Kinds of layers without weights, by which they are called within an attention module."""
PRODUCTS: Final = ("attention", "matmul")
"""Kinds of operations whose operands are multiplied and summed up."""
OPERANDS: Final = (*PRODUCTS, "add", "mul", "cat")
"""Kinds of layers without weights that are operands of such an operation between layers."""
WEIGHTLESS: Final = (*CACHES, *OPERANDS)
"""Kinds of layers without weights."""


@dataclass(frozen=True)
class Layer:
    """One quantizable layer.

    All counts are per example and summed over the layer's calls in one forward pass.

    Args:
        name: As in ``model.named_modules()``; the projections inside ``nn.MultiheadAttention`` are
            ``<name>.q_proj``, ``.k_proj``, ``.v_proj`` and ``.out_proj``; see ``OpenRecurrent``,
            ``OpenCell``, ``OpenBag`` and ``OpenBilinear`` for other modules that are opened.
        kind: ``linear``, ``conv1d`` to ``conv3d``, ``conv_transpose1d`` to ``3d``, ``embedding``;
            ``k_cache``, or ``unrotated_k_cache`` before positions are rotated into it, and
            ``v_cache``: what attention keeps of earlier tokens (``Operand``), which has a weight
            ``[H, D, 0]`` of no numbers: heads, and numbers of one head; ``OPERANDS``: what an
            operation between layers reads, with a weight ``[place, count, 0]``: which of the
            module's calls of its kind it is, from 1 on, and of how many.
        weight_shape: Shape of the weight as torch stores it; see ``RowLayout`` for its axes.
        num_channels: Output channels: how many scales a weight has, one per channel.
        input_shape: Shape of the first call's input, without the batch axis.
        output_shape: Shape of the first call's output, without the batch axis.
        input_elements: Numbers in the inputs of all calls, of one example.
        output_elements: Numbers in the outputs of all calls, of one example.
        macs: Multiply-accumulate operations of all calls, for one example; of an operand of a
            product its share of them: half, or all where the other one is no layer.
        calls: How often one forward pass calls the layer.
        groups: Groups of a convolution; 1 elsewhere.
        batch_axis: Where examples lie in its input: 0, or 1 in a sequence-first network.
        aliases: Further names of the same module.
        input_of: The first layer that reads the very same tensor, if that is another one.
        weight_of: The first layer that owns the very same parameter, if that is another one.
        fed_by: Quantizable layers whose outputs reach this layer's input through operations that
            are no quantizable layers, in the order of their first call.
        has_own_forward: Whether its module computes something else than torch's layer of its kind
            does: scales, pads, standardises the weight. See ``own_forward``.
        is_hooked: Whether that is because a hook of the user's changes its output.
        is_choosing: Whether something is chosen by its output (``topk``, a comparison), as by a
            router's.
        is_before_choice: Whether its output reaches such a layer, through whatever lies between.
        is_transposed: Whether it is a part of a parameter that holds it as ``[I, O]``; its own
            shape is ``[O, I]`` all the same.
        computed: How its weight is computed from parameters and buffers, as ``expressions`` writes
            it; empty where it is a parameter, or a part of one.
        original_bits: Of one number of the weight as it came: 32 in float32, 16 in bfloat16; of a
            cache, of one key or value.
        most_tokens: Of a cache in a sliding window: how many tokens it keeps.
        query_heads: Of a cache: heads of the queries that read it.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    num_channels: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_elements: int
    output_elements: int
    macs: int
    calls: int = 1
    groups: int = 1
    batch_axis: int = 0
    aliases: tuple[str, ...] = ()
    input_of: str | None = None
    weight_of: str | None = None
    fed_by: tuple[str, ...] = ()
    has_own_forward: bool = False
    is_hooked: bool = False
    is_choosing: bool = False
    is_before_choice: bool = False
    is_transposed: bool = False
    original_bits: int = 32
    computed: str = ""
    most_tokens: int | None = None
    query_heads: int = 0

    @property
    def is_cache(self) -> bool:
        """Whether it is what attention keeps of earlier tokens, and has no weight."""
        return self.kind in CACHES

    @property
    def is_operand(self) -> bool:
        """Whether it is what an operation between layers reads, and has no weight."""
        return self.kind in OPERANDS

    @property
    def has_weights(self) -> bool:
        """Whether it has a weight: it is neither a cache nor an operand."""
        return self.kind not in WEIGHTLESS

    @property
    def num_weights(self) -> int:
        """Elements of the weight."""
        return prod(self.weight_shape)

    @property
    def signature(self) -> str:
        """What makes two layers the same layer: name, kind and weight shape.

        >>> Layer("fc", "linear", (10, 64), 10, (64,), (10,), 64, 10, 640).signature
        'fc linear 10x64'
        """
        return signature(self.name, self.kind, self.weight_shape)


def weighted(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Those that have weights: all but key-value caches and operands."""
    return tuple(layer for layer in layers if layer.has_weights)


def signature(name: str, kind: str, weight_shape: Sequence[int]) -> str:
    """Name, kind and shape in one line."""
    return f"{name} {kind} {'x'.join(map(str, weight_shape))}"


def fingerprint(signatures: Iterable[str]) -> str:
    """SHA-256 over the layers' signatures, in order: tells networks apart, not their weights."""
    return hashlib.sha256("\n".join(signatures).encode()).hexdigest()


def with_owners(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, with ``input_of`` and ``weight_of`` naming the first of *these* layers.

    Where the first reader of a tensor or the first user of a parameter is left out, the next one
    takes its place.
    """
    first: dict[tuple[str, str], str] = {}

    def owner(what: str, layer: Layer, former: str | None) -> str | None:
        # Keyed by the former owner, who may be left out: the next one that names it steps in.
        found = first.setdefault((what, former or layer.name), layer.name)
        return found if found != layer.name else None

    return tuple(
        replace(
            layer,
            input_of=owner("input", layer, layer.input_of),
            weight_of=owner("weight", layer, layer.weight_of),
        )
        for layer in layers
    )


def ties_of(layers: Sequence[Layer]) -> tuple[tuple[str, ...], ...]:
    """Layers that must share a precision: they read one tensor, or use one parameter."""
    pairs = [(layer.name, other) for layer in layers for other in (layer.input_of, layer.weight_of)]
    return merge_ties([pair for pair in pairs if pair[1] is not None], [x.name for x in layers])


def merge_ties(
    ties: Iterable[Sequence[str | None]], order: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Ties that overlap become one; members and ties come in the given order of names.

    >>> merge_ties([("b", "a"), ("c", "b"), ("d",)], ["a", "b", "c", "d"])
    (('a', 'b', 'c'),)
    """
    position = {name: place for place, name in enumerate(order)}
    group: dict[str | None, set[str]] = {name: {name} for name in order}
    for tie in ties:
        merged = set[str]().union(*(group[name] for name in tie if name in group))
        for name in merged:
            # All members point to one set, so that a later tie that overlaps it finds the whole.
            group[name] = merged
    # By identity, as every member of a tie leads to the same set. A dict keeps the order of names.
    unique = {id(members): members for members in group.values() if len(members) > 1}
    return tuple(tuple(sorted(members, key=position.__getitem__)) for members in unique.values())
