"""Passes with gradients that keep what blocks read, and run each block again on the way back.

Chen et al. (2016), Training deep nets with sublinear memory cost, arXiv:1604.06174. Torch's own
``checkpoint`` keeps what hooks on layers hold; here the first run of a block is none that hooks
of the pass see.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mpq._support.pages import ALLOWED
from mpq.errors import ModelError
from mpq.network.mapped import release
from mpq.network.own_forward import unseen
from mpq.network.tensor_entries import outside_memory
from mpq.sensitivity.passes.prefix import CONSTANT, forward_replaced

SHARE: Final = 1 / 8
"""Of the memory that is allowed: what blocks read takes no more of it."""


@contextmanager
def kept_at_borders(blocks: Sequence[nn.Module], num_examples: int) -> Iterator[None]:
    """Within this block the modules keep their inputs alone until the backward pass.

    Numbers are those without it: every block computes twice what it computed once. Where what all
    of them read would take more than ``SHARE`` of the memory that is allowed, it lies in files of
    the temporary folder, without a name, until the block is run again.

    Args:
        blocks: Modules that are called one after the other; none: nothing is done.
        num_examples: Examples in the batch, ``N``.
    """
    allowed = ALLOWED.get()
    most_bytes = None if allowed is None else SHARE * allowed / max(len(blocks), 1)
    forwards = {
        block: update_wrapper(
            partial(_at_border, block, block.forward, num_examples, most_bytes), block.forward
        )
        for block in blocks
    }
    with forward_replaced(forwards):
        yield


def _at_border(
    block: nn.Module,
    forward: Callable[..., Any],
    num_examples: int,
    most_bytes: float | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Stands in for a block's ``forward``."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    _check(block, leaves, num_examples)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    # Without the tensors, which autograd keeps, and sees whether one is changed meanwhile.
    # What has no gradient, as a mask, is one tensor for all blocks.
    sizes = (t.numel() * t.element_size() for t in tensors if t.requires_grad)
    is_large = most_bytes is not None and sum(sizes) > most_bytes
    call = _BlockCall(block, forward, _without_tensors(leaves), spec, is_large)
    # Of its own, so that there is a backward pass where nothing that the block reads has a
    # gradient, while its layers have.
    start = torch.zeros((), requires_grad=True)
    outputs = _Recomputed.apply(call, start, *tensors)  # type: ignore[no-untyped-call]
    handed_on = [tensors[x] if isinstance(x, _Given) else x for x in call.returned]
    return _with_tensors(handed_on, outputs, call.returned_spec)


def _check(block: nn.Module, leaves: Sequence[Any], num_examples: int) -> None:
    kind = type(block).__name__
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *CONSTANT)):
            raise ModelError(
                f"streaming runs every block ({kind}) twice, and this one reads a "
                f"{type(leaf).__name__}, which the first time may change (a cache: switch it off)"
            )
        if isinstance(leaf, Tensor) and leaf.requires_grad and num_examples > 1:
            is_split = leaf.ndim and (len(leaf) % num_examples == 0)
            if not is_split and num_examples not in leaf.shape[:2]:
                raise ModelError(
                    f"streaming: blocks ({kind}) read what a layer computed once for all examples "
                    f"of a batch ({tuple(leaf.shape)}), whose gradient for each example is lost "
                    "at a border; give batches of one example"
                )


@final
@dataclass(eq=False)
class _BlockCall:
    """One call of a block.

    Args:
        block: Which.
        forward: Its own.
        leaves: What it was called with, flattened, without the tensors.
        spec: How that is put together again.
        is_large: Whether the tensors are kept in a file.
        returned: What it returned, in the same way; known when it has run. What it handed on as it
            came is a ``_Given``.
        returned_spec: See ``spec``.
    """

    block: nn.Module
    forward: Callable[..., Any]
    leaves: list[Any]
    spec: TreeSpec
    is_large: bool = False
    returned: list[Any] = field(default_factory=list)
    returned_spec: TreeSpec | None = None

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that the block makes and returns."""
        args, kwargs = _with_tensors(self.leaves, tensors, self.spec)
        found, self.returned_spec = tree_flatten(self.forward(*args, **kwargs))
        # To autograd an output is another tensor, with a gradient: a mask would get one.
        given = {id(tensor): _Given(i) for i, tensor in enumerate(tensors)}
        found = [given.get(id(leaf), leaf) for leaf in found]
        self.returned = _without_tensors(found)
        return [leaf for leaf in found if isinstance(leaf, Tensor)]


class _Given(int):
    """The number of a tensor among those that a block was called with."""


_PLACE: Final = object()
"""Where a tensor was."""


def _without_tensors(leaves: Sequence[Any]) -> list[Any]:
    return [_PLACE if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _with_tensors(leaves: Sequence[Any], tensors: Sequence[Tensor], spec: TreeSpec | None) -> Any:
    assert spec is not None
    waiting = iter(tensors)
    return tree_unflatten([next(waiting) if leaf is _PLACE else leaf for leaf in leaves], spec)


def _in_file(tensors: Sequence[Tensor], has_gradient: Sequence[bool]) -> list[Tensor]:
    """The same numbers, in a file as far as they have gradients."""
    pairs = enumerate(zip(tensors, has_gradient, strict=True))
    kept = outside_memory({str(i): tensor for i, (tensor, is_moved) in pairs if is_moved})
    return [kept.get(str(i), tensor.detach()) for i, tensor in enumerate(tensors)]


class _Recomputed(torch.autograd.Function):
    """A block's outputs; on the way back it is run again, and differentiated."""

    @staticmethod
    def forward(ctx: Any, call: _BlockCall, _: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Outputs that are tensors."""
        ctx.call, ctx.in_file = call, None
        if call.is_large:
            ctx.in_file = _in_file(tensors, ctx.needs_input_grad[2:])
        else:
            ctx.save_for_backward(*tensors)
        with torch.no_grad(), unseen(call.block):
            found = call.run(tensors)
        ctx.mark_non_differentiable(*(t for t in found if not t.is_floating_point()))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what the block read."""
        call: _BlockCall = ctx.call
        needed = ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors if ctx.in_file is None else ctx.in_file
        inputs = [
            tensor.detach().requires_grad_(is_needed)
            for tensor, is_needed in zip(saved, needed, strict=True)
        ]
        with torch.enable_grad():
            found = call.run(inputs)
        pairs = [(t, g) for t, g in zip(found, gradients, strict=True) if t.requires_grad]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        # Of a file that is mapped a copy is read, which goes with the gradients.
        release([*call.block.parameters(), *(ctx.in_file or ())])
        return None, None, *(tensor.grad for tensor in inputs)
