"""Wrappers around a module that compute what it computes: ``torch.compile``, data parallelism.

Their names (``_orig_mod.``, ``module.``) would be in every layer's name, and neither a compiled
function nor a process group can be copied. What they wrap is searched instead.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import nn

from mpq.errors import ModelError

_WRAPPED_IN: Final[Mapping[tuple[str, str], str]] = {
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"): (
        "_fsdp_wrapped_module"
    ),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "CheckpointWrapper"): (
        "_checkpoint_wrapped_module"
    ),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "OffloadWrapper"): (
        "_checkpoint_wrapped_module"
    ),
    ("torch.optim.swa_utils", "AveragedModel"): "module",
}
"""Where a wrapper is defined, its class, and the attribute that holds what it wraps.

By name, as importing torch's compiler or its distributed packages takes seconds.
"""


def unwrapped(module: nn.Module) -> nn.Module:
    """What is computed, without wrappers around it; most modules are that themselves.

    Raises:
        ModelError: If a wrapper has hooks, which would be lost.
    """
    attribute = _attribute_of(module)
    while attribute is not None:
        if module._forward_hooks or module._forward_pre_hooks:
            raise ModelError(
                f"a {type(module).__name__} has forward hooks of its own; register them on the "
                "module that it wraps, or give that module"
            )
        module = module._modules[attribute]  # type: ignore[assignment]
        attribute = _attribute_of(module)
    return module


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``named_modules``, without wrappers, neither in the modules nor in their names."""
    return _walk("", model, set())


def _walk(name: str, module: nn.Module, met: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    if module in met:
        return
    met.add(module)
    yield name, module
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _walk(f"{name}.{child_name}" if name else child_name, child, met)


def copies_of_wrapped(model: nn.Module, copied: dict[int, Any], copy: Any) -> None:
    """Makes ``deepcopy`` put a copy of what is wrapped in the place of every wrapper.

    Args:
        model: What will be copied.
        copied: The memo of ``deepcopy``: id to copy.
        copy: Copies a module with that memo.
    """
    # The innermost first: their outer ones find them in the memo.
    for wrapper in reversed(list(model.modules())):
        attribute = _attribute_of(wrapper)
        if attribute is None:
            continue
        inner = copy(unwrapped(wrapper))
        # Code around it may go through the wrapper: `self.net.module.features(x)`. In `__dict__`,
        # where it is no submodule and thus in no name.
        if not hasattr(inner, attribute):
            vars(inner)[attribute] = inner
        copied[id(wrapper)] = inner


def _attribute_of(module: nn.Module) -> str | None:
    kinds = ((kind.__module__, kind.__name__) for kind in type(module).__mro__)
    return next((_WRAPPED_IN[kind] for kind in kinds if kind in _WRAPPED_IN), None)
