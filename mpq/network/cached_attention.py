"""Attention whose keys and values go through layers of their own, where transformers has it.

transformers looks the function that attends up by a name in the configuration. In our own copy that
name is one of ours, whose function hands keys and values, as the cache holds them (rotated, heads
not repeated), to ``Operand`` modules before it calls the function that was there.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from mpq.errors import MismatchError, ModelError
from mpq.network.cached_tokens import Cached, cached_by, mask_of
from mpq.network.examples import Batch
from mpq.network.kept_tokens import CacheLayers, KeptTokens
from mpq.network.layer import KEYS, UNROTATED_KEYS, VALUES
from mpq.network.operand import CacheShape, Operand, operands_of, repeated
from mpq.network.rotation import Rotation, check_rotation, keep_positions

_OURS: Final = {"sdpa": "mpq_sdpa", "eager": "mpq_eager"}
"""transformers' name of a function that attends, and of ours around it."""
_TOKENS: Final = "_mpq_kept_tokens"
"""Attribute of an attention module in our own copy."""


@final
@dataclass(frozen=True)
class _Seen:
    """What attention modules were called with.

    Args:
        found: What the caches of each keep of a token, by the module's id.
        lengths: How many tokens there were.
        kinds: Of the layers for keys and for values.
    """

    found: dict[int, tuple[CacheShape, CacheShape]] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    kinds: tuple[str, str] = (KEYS, VALUES)

    def add(
        self, module: nn.Module, num_queries: int, key: Tensor, value: Tensor, window: int | None
    ) -> None:
        """A call; only one that no token after the query is seen in can have a cache."""
        if vars(module).get("is_causal") is not True:
            return
        if UNROTATED_KEYS in self.kinds:
            check_rotation(module, key)
        shapes = (
            CacheShape(kind, x.shape[1], x.shape[3], num_queries, window)
            for kind, x in zip(self.kinds, (key, value), strict=True)
        )
        self.found.setdefault(id(module), (next(shapes), next(shapes)))
        self.lengths.add(key.shape[2])


_LOOKING: ContextVar[_Seen | None] = ContextVar("_LOOKING", default=None)


def open_caches(module: nn.Module, batch: Batch, caches: CacheLayers) -> None:
    """Gives every causal attention that a batch reaches its ``k_cache`` and ``v_cache``, in place.

    Runs the batch once.

    Args:
        module: Our own copy.
        batch: On its device.
        caches: Which tokens are kept, and when keys are held.

    Raises:
        ModelError: If there is no such attention, the examples are so short that all tokens are
            kept (every format would lose nothing), or a rotation cannot be undone.
    """
    _route(module)
    tokens = caches.tokens
    seen = _Seen(kinds=(UNROTATED_KEYS if caches.before_rotation else KEYS, VALUES))
    if caches.before_rotation:
        for part in module.modules():
            if vars(part).get("is_causal") is True:
                keep_positions(part)
    with _looking(seen), torch.no_grad():
        module(*batch.args, **batch.kwargs)
    found = {name: seen.found[id(m)] for name, m in module.named_modules() if id(m) in seen.found}
    if not found:
        raise ModelError(
            "no attention was found whose keys and values could be quantized: it takes a causal "
            "one of transformers, with the implementation sdpa or eager; leave the key-value cache "
            "out (kv_cache, --kv-cache)"
        )
    if max(seen.lengths) <= tokens.first + tokens.window:
        raise ModelError(
            f"the examples have {max(seen.lengths)} tokens, and the key-value cache keeps the "
            f"first {tokens.first} and the last {tokens.window} as they came, so that nothing "
            "would be rounded: show longer examples, or keep fewer (--kv-first, --kv-window)"
        )
    for name, shapes in found.items():
        _give(module, name, shapes, tokens)


def give_caches(module: nn.Module, shapes: Mapping[str, CacheShape], tokens: KeptTokens) -> None:
    """The same where names and shapes are known, without a batch.

    Args:
        module: Our own copy.
        shapes: Name of each layer, such as ``model.layers.0.self_attn.k_cache``.
        tokens: Which tokens' keys and values stay as they came.

    Raises:
        MismatchError: If the network has no module that a layer would be a part of.
    """
    if shapes:
        _route(module)
    modules = dict(module.named_modules())
    for name, shape in shapes.items():
        attention = name.rpartition(".")[0]
        if attention not in modules:
            raise MismatchError(
                f"the assignment belongs to another network: this one lacks {attention!r}, which "
                f"would have the cache {name!r}"
            )
        _give(module, attention, [shape], tokens)
        if shape.kind == UNROTATED_KEYS:
            keep_positions(module.get_submodule(attention))


def _give(module: nn.Module, name: str, shapes: Sequence[CacheShape], tokens: KeptTokens) -> None:
    attention = module.get_submodule(name)
    vars(attention)[_TOKENS] = tokens
    like = next(attention.parameters())
    for shape in shapes:
        attention.add_module(shape.kind, Operand(shape, like))


def tokens_kept_by(attention: nn.Module) -> KeptTokens:
    """Which tokens an attention with a cache of ours keeps as they came."""
    found: KeptTokens = vars(attention)[_TOKENS]
    return found


@contextmanager
def _looking(seen: _Seen) -> Iterator[None]:
    before = _LOOKING.set(seen)
    try:
        yield
    finally:
        _LOOKING.reset(before)


def _route(module: nn.Module) -> None:
    """Makes our own copy of a network of transformers attend by our functions."""
    # Not imported: a network of transformers has it loaded, and others have nothing to route.
    library: Any = sys.modules.get("transformers")
    if library is None or not hasattr(library, "AttentionMaskInterface"):
        return
    masks = library.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    for name, ours in _OURS.items():
        library.AttentionInterface.register(ours, partial(_attend, name))
        library.AttentionMaskInterface.register(ours, masks[name])
    for part in module.modules():
        # Ours: `deepcopy` has copied it with the module. Past the property, which would set those
        # of all parts of a network alike.
        config = vars(part).get("config")
        known = getattr(config, "_attn_implementation", None)
        if config is not None and known in _OURS:
            config._attn_implementation_internal = _OURS[known]


def _attend(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """What transformers calls in the place of its own function of that name."""
    seen, attend = _LOOKING.get(), _original(name, module)
    if seen is not None:
        seen.add(module, query.shape[1], key, value, kwargs.get("sliding_window"))
    operands = operands_of(module)
    if not any(operands):
        return attend(module, query, key, value, attention_mask, **kwargs)
    tokens = tokens_kept_by(module)
    keys, values = (
        cached_by(x) or Cached.of(x, operand, tokens, _of_all(rotation, x))
        for operand, x, rotation in zip(operands, (key, value), rotations_of(module), strict=True)
    )
    # Without a window every query sees the same, in the order of the sequence.
    if tokens.window:
        attention_mask = mask_of(keys, query.shape[2], tokens, attention_mask)
    shown = keys.all
    with repeated(shown.shape[2] / keys.length):
        return attend(module, query, shown, values.all, attention_mask, **kwargs)


def rotations_of(attention: nn.Module) -> tuple[Rotation | None, None]:
    """Of keys that are held before it, while an attention runs, of its tokens; and of values."""
    keys, _ = operands_of(attention)
    return (Rotation.of(attention) if keys is not None and keys.is_unrotated else None), None


def _of_all(rotation: Rotation | None, x: Tensor) -> Rotation | None:
    """The rotation, of all tokens of ``[N, H, T, D]``.

    Raises:
        ModelError: If a cache that is not ours has tokens whose positions are not known any more.
    """
    if rotation is not None and rotation.num_tokens != x.shape[2]:
        raise ModelError(
            f"keys are held before their rotation, and the positions of {rotation.num_tokens} of "
            f"{x.shape[2]} tokens are known: decode with mpq.backends.quantized_cache"
        )
    return rotation


def _original(name: str, module: nn.Module) -> Callable[..., Any]:
    """transformers' function of that name for a module, as the file of its class has it.

    Raises:
        ModelError: If there is none.
    """
    for kind in type(module).__mro__:
        known = vars(sys.modules[kind.__module__])
        if name == "eager" and "eager_attention_forward" in known:
            return known["eager_attention_forward"]  # type: ignore[no-any-return]
        if name != "eager" and "ALL_ATTENTION_FUNCTIONS" in known:
            return known["ALL_ATTENTION_FUNCTIONS"][name]  # type: ignore[no-any-return]
    raise ModelError(
        f"the attention of {type(module).__name__} ({name}) is none that keys and values can be "
        "quantized in; load the network with attn_implementation='sdpa', or leave the key-value "
        "cache out (kv_cache, --kv-cache)"
    )
