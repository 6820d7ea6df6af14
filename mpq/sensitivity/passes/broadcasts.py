"""What each example does with a tensor that all of them share, such as embedded positions."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ELEMENTWISE = frozenset(
    name
    for stem in ("add", "sub", "mul")
    for name in (stem, f"{stem}_", f"__{stem}__", f"__i{stem}__", f"__r{stem}__")
)
"""Functions by which a shared tensor meets those of the examples."""


@final
class Broadcasts(TorchFunctionMode):
    """Within this block, what the examples' tensors meet a shared one in gives a gradient for each.

    ``tokens + positions`` of ``[N, T, E]`` and ``[1, T, E]`` (or ``[T, E]``) spreads the positions
    over the examples, and autograd adds their gradients up again. Here that one operation reads the
    positions from a view with a row per example, whose gradient is not added up yet. All shapes and
    numbers that the network sees are those of the plain pass.

    Args:
        num_examples: Examples in the batch, ``N``.
    """

    def __init__(self, num_examples: int) -> None:
        super().__init__()
        self._num_examples = num_examples
        self._shared: dict[int, _Shared] = {}

    def watched(self, output: Tensor, read: Callable[[Tensor, Tensor | None], None]) -> Tensor:
        """A tensor with the same numbers, for the network to go on with.

        Args:
            output: What a layer gave; requires a gradient.
            read: Called in the backward pass with the gradient of the output, and with ``[N, ...]``
                gradients of each example; ``None`` where it is used in another way, too.
        """
        # A copy, so that gradients of the two ways arrive apart, and an operation in place that
        # follows does not meet the view.
        plain = output.clone()
        shared = _Shared(output, plain, read)
        self._shared[id(plain)] = shared
        plain.register_hook(shared.read_plain)
        output.register_hook(shared.read_all)
        return plain

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._shared and getattr(func, "__name__", "") in _ELEMENTWISE:
            args = self._spread(list(args))
        return func(*args, **(kwargs or {}))

    def _spread(self, args: list[Any]) -> list[Any]:
        for place, other in ((0, 1), (1, 0)):
            if len(args) > 1 and isinstance(args[other], Tensor):
                shared = self._shared.get(id(args[place]))
                if shared is not None:
                    args[place] = self._view(shared, args[other])
        return args

    def _view(self, shared: "_Shared", other: Tensor) -> Tensor:
        """The shared tensor with a row per example, if the other tensor has one."""
        plain = shared.plain
        # Changed in place since, it is no longer what the layer gave.
        if other.shape[:1] != (self._num_examples,) or plain._version != shared.version:
            return plain
        is_row = plain.ndim == other.ndim and len(plain) == 1
        if not is_row and plain.ndim != other.ndim - 1:
            return plain
        view = shared.output.expand(self._num_examples, *plain.shape[int(is_row) :])
        if not torch.is_grad_enabled():
            return view
        view.register_hook(shared.read_view)
        return view


class _Shared:
    """Gradients of one shared tensor, while a backward pass runs."""

    def __init__(
        self, output: Tensor, plain: Tensor, read: Callable[[Tensor, Tensor | None], None]
    ) -> None:
        self.output = output
        self.plain = plain
        self.version = plain._version
        self._read = read
        self._is_used_plainly = False
        self._views: list[Tensor] = []

    def read_plain(self, _: Tensor) -> None:
        """Of uses that are not spread over the examples."""
        self._is_used_plainly = True

    def read_view(self, g: Tensor) -> None:
        """Of one use that is."""
        self._views.append(g.detach())

    def read_all(self, g: Tensor) -> None:
        """Of all uses together: autograd comes here last."""
        views, is_spread = self._views, bool(self._views) and not self._is_used_plainly
        # Before reading, which may raise: the next backward pass begins anew.
        self._views, self._is_used_plainly = [], False
        by_example = torch.stack(views).sum(dim=0) if len(views) > 1 else None
        if len(views) == 1:
            by_example = views[0]
        self._read(g.detach(), by_example if is_spread else None)
