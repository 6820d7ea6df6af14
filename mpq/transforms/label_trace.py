"""A forward pass whose operations are followed by rules, which channels and spaces share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpq.network.arguments import tensors_in
from mpq.transforms.parameter_views import ParameterViews

FREE: Final = -1
"""Label of a number that nothing reaches."""
Labels: TypeAlias = tuple[int, ...]
ATTENTION: Final = (
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
    "_scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable"
)
"""Operations of torch's attention, one for each kernel."""
_METADATA: Final = ("new_", "empty", "sym_")


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One operation of a forward pass."""

    operation: str
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any


class LabelTrace(TorchDispatchMode):
    """Hands every operation of a forward pass to its rule, which follows labels through it.

    Args:
        module: Whose parameters are named.
        rules: Operation to what it does to labels.
    """

    def __init__(self, module: nn.Module, rules: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.views = ParameterViews(module)
        self._rules = rules
        self._made: dict[int, tuple[Tensor, str]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it away from here: several seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = func._schema.name.partition("::")[2]
        if self.views.follow(operation, args, result):
            return result
        rule = self._rules.get(operation)
        if rule is not None:
            rule(self, Call(operation, func, args, kwargs, result))
        elif not operation.startswith(_METADATA) and not operation.endswith("_like"):
            self.without_rule([args, kwargs], operation)
            self.tell(result, operation)
        return result

    def without_rule(self, values: Any, operation: str) -> None:
        """An operation without a rule reads some tensors."""
        self.end(values, f"goes through {operation}")

    @abstractmethod
    def end(self, values: Any, why: str) -> None:
        """Ends the freedom of all that is in some tensors, and of parameters among them."""

    def told(self, value: Any) -> str:
        """What made a tensor, for people."""
        return self._made.get(id(value), (None, "the network's input"))[1]

    def tell(self, result: Any, what: str) -> None:
        """Remembers what made some tensors."""
        self._made |= {id(tensor): (tensor, what) for tensor in tensors_in(result)}


def constant_along(labels: Tensor, *axes: int) -> bool:
    """Whether labels are the same all along some axes."""
    return all(bool((labels == labels.narrow(axis, 0, 1)).all()) for axis in axes if labels.numel())


def vector_along(labels: Tensor, axis: int) -> Labels | None:
    """``[n]`` labels along an axis, where they are the same along all others; else ``None``."""
    others = [i for i in range(labels.ndim) if i != axis % labels.ndim]
    if not labels.numel() or not constant_along(labels, *others):
        return None
    first = labels.movedim(axis, -1).reshape(-1, labels.shape[axis])[0]
    return tuple(torch.as_tensor(first).tolist())
