"""Which output channels of layers belong to one head of an attention."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from mpq._support.arrays import Columns, Mask
from mpq.network.batch import Batch
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.network.operations import call_of

_SOFTMAX: Final = (torch.softmax, Tensor.softmax, F.softmax)
Head: TypeAlias = tuple[str, int]
"""A layer, and which of its parts."""


@final
@dataclass(frozen=True, eq=False)
class Heads:
    """Output channels by head, of the layers that make queries, keys or values.

    Args:
        parts: Layer name to ``[O]``: the head of every channel, counted by first channels from 0
            on. What makes queries and keys has those of both; channels of no head are one more.
        together: Heads of queries, keys and values that meet in a product; where several heads of
            queries share one of keys, all of these.
    """

    parts: Mapping[str, Columns]
    together: tuple[tuple[Head, ...], ...]

    def block(self, name: str) -> int:
        """Consecutive channels that are a head of a layer; 1 where they are no neighbours."""
        parts = self.parts[name]
        size = int((parts == 0).sum())
        return size if np.array_equal(parts, np.arange(len(parts)) // size) else 1


def find_heads(network: Network, batch: Batch) -> Heads:
    """Finds them in a pass over a batch, and gradients back to the next layers.

    An attention is ``scaled_dot_product_attention``, or two products of tensors ``[..., H, T, D]``
    with a softmax between them. The channels of a head are those that its numbers depend on: a
    layer all of whose channels reach every head (a norm over all of them lies between) has none,
    as has one with a single head.

    Args:
        network: Whose linear layers are looked at.
        batch: On the network's device; an example will do.
    """
    made = _Made()
    handles = [
        network.layer_module(layer.name).register_forward_hook(partial(made.leaf, layer.name))
        for layer in network.layers
        if layer.kind == "linear"
    ]
    with hooks(handles), torch.enable_grad(), _Attentions(made):
        network.outputs(batch)
    return made.heads()


@final
@dataclass
class _Made:
    """What a pass has made so far.

    Args:
        leaves: Outputs of layers, from which gradients do not go on; those that are still needed.
        masks: Layer name to the channels ``[O]`` of each head, as bytes; in order.
        together: Heads that meet, by layer and mask.
    """

    leaves: list[tuple[str, TensorWeakRef]] = field(default_factory=list)
    masks: dict[str, dict[bytes, Mask]] = field(default_factory=dict)
    together: list[list[tuple[str, bytes]]] = field(default_factory=list)

    def leaf(self, name: str, _: nn.Module, __: Any, output: Any) -> Any:
        """A hook on a layer: the same numbers, whose gradients are asked for."""
        if not isinstance(output, Tensor):
            return output
        leaf = output.detach().requires_grad_()
        # Weakly: what the network has let go of would be held for all layers.
        self.leaves.append((name, TensorWeakRef(leaf)))
        return leaf.clone()  # a leaf could not be written to

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """An attention reads these, ``[..., H, T, D]``; keys may be ``[..., H, D, T]``."""
        count = query.shape[-3]
        met: list[list[tuple[str, bytes]]] = [[] for _ in range(count)]
        for operand in (query, key, value):
            times = max(count // operand.shape[-3], 1)  # heads of keys may serve several queries
            for name, masks in self._channels(operand).items():
                for head in range(count):
                    mask = masks[head // times]
                    self.masks.setdefault(name, {})[mask.tobytes()] = mask
                    met[head].append((name, mask.tobytes()))
        self.together += met

    def _channels(self, operand: Tensor) -> dict[str, list[Mask]]:
        """Layer name to the channels that each head depends on, if these differ."""
        alive = [(name, leaf) for name, ref in self.leaves if (leaf := ref()) is not None]
        if not operand.requires_grad or not alive:  # of no layer, such as learned queries
            return {}
        # No sums: those of a normalized head do not depend on what it is made of.
        generator = torch.Generator().manual_seed(0)
        factors = torch.rand(operand.shape[-2:], generator=generator).to(operand) + 0.5
        names, leaves = zip(*alive, strict=True)
        found: dict[str, list[Mask]] = {name: [] for name in names}
        for head in range(operand.shape[-3]):
            value = (operand[..., head, :, :] * factors).sum()
            slopes = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            for name, own in found.items():
                reached = [
                    (slope != 0).flatten(0, -2).any(dim=0)
                    for other, slope in zip(names, slopes, strict=True)
                    if other == name and slope is not None
                ]
                own += [torch.stack(reached).any(dim=0).cpu().numpy()] if reached else []
        return {
            name: masks
            for name, masks in found.items()
            if len(masks) == operand.shape[-3]
            and all(mask.any() for mask in masks)
            and len({mask.tobytes() for mask in masks}) > 1
        }

    def heads(self) -> Heads:
        """What all attentions together say; a layer whose heads overlap has none."""
        numbered = ((name, _parts(own)) for name, own in self.masks.items())
        parts = {name: own for name, own in numbered if own is not None}
        together = (
            tuple(dict.fromkeys((n, _number(parts[n], mask)) for n, mask in met if n in parts))
            for met in self.together
        )
        return Heads(parts, tuple(x for x in together if len(x) > 1))


def _parts(masks: Mapping[bytes, Mask]) -> Columns | None:
    """``[O]`` numbers of heads by their first channels; ``None``: they overlap."""
    every = np.stack([*masks.values()])
    covered: Columns = every.sum(axis=0)  # how many heads depend on each channel
    if (covered > 1).any():
        return None
    if (covered == 0).any():
        every = np.concatenate([every, (covered == 0)[None]])
    every = every[np.argsort(every.argmax(axis=1))]
    return np.asarray(every.argmax(axis=0), dtype=np.intp)


def _number(parts: Columns, mask: bytes) -> int:
    return int(parts[np.frombuffer(mask, dtype=np.bool_).argmax()])


@final
class _Attentions(TorchFunctionMode):
    """Sees queries, keys and values wherever they meet."""

    def __init__(self, made: _Made) -> None:
        super().__init__()
        self._made = made
        self._scores: tuple[Tensor, Tensor] | None = None
        self._is_softened = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function."""
        kwargs = kwargs or {}
        if func in _SOFTMAX:
            self._is_softened = self._scores is not None
        else:
            call = call_of(func, args, kwargs)
            if call is not None and all(x.ndim > 2 for x in call.operands.values()):
                self._product(call.kind, call.operands)
        return func(*args, **kwargs)

    def _product(self, kind: str, operands: Mapping[str, Tensor]) -> None:
        if kind == "attention":
            self._made.attend(*(operands[role] for role in ("query", "key", "values")))
        elif kind == "matmul" and self._is_softened and self._scores is not None:
            query, key = self._scores
            self._scores, self._is_softened = None, False
            self._made.attend(query, key, operands["right"])
        elif kind == "matmul":
            self._scores = operands["left"], operands["right"]
