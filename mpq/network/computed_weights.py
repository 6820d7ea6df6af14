"""Weights that are computed from other tensors (weight_norm, pruning), replaced by their values.

In our own copy alone: a layer then holds the plain parameter that deployment stores.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

_TABLES = (nn.Embedding, nn.EmbeddingBag)


def computed_tensors(value: Any) -> Iterator[Tensor]:
    """Results of computations that a module's attribute holds, also in lists, tuples and dicts.

    ``deepcopy`` refuses them: old-style weight_norm's weight, or a cache of the last outputs.
    """
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, dict):
        yield from (t for item in value.values() for t in computed_tensors(item))
    elif isinstance(value, tuple | list):
        yield from (t for item in value for t in computed_tensors(item))


def hold_values(module: nn.Module) -> None:
    """Replaces every computed parameter by a plain one with its value in evaluation mode, in place.

    What is computed anew with another value each time (noise) stays computed.

    Args:
        module: Our own copy, in evaluation mode: spectral_norm does not iterate there.
    """
    with torch.no_grad():
        for each in list(module.modules()):
            _evaluate_hooks(each)
            if parametrize.is_parametrized(each):
                _evaluate_parametrizations(each)


def _evaluate_hooks(module: nn.Module) -> None:
    """Of ``nn.utils.weight_norm``, ``spectral_norm`` and ``prune``: hooks before the forward."""
    found = {key: hook for key, hook in module._forward_pre_hooks.items() if _sources(hook)}
    # All before any source goes, in their order: a weight_norm may read a pruned direction.
    for hook in found.values():
        hook(module, ())
    for key, hook in found.items():
        del module._forward_pre_hooks[key]
        for source in _sources(hook):
            # A source that another hook computed lies in neither of the two.
            vars(module).pop(source, None)
            module._parameters.pop(source, None)
            module._buffers.pop(source, None)
    for hook in found.values():
        name = _name(hook)
        # What was the source of another hook has been taken away.
        if name in vars(module):
            _hold(module, name, vars(module).pop(name))
    if found:
        _forget_state_hooks(module)


def _forget_state_hooks(module: nn.Module) -> None:
    """Old-style spectral_norm wants its sources in every state dict that is loaded."""
    own = (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        # Those of loading are wrapped together with their module.
        for key in [k for k, h in hooks.items() if isinstance(getattr(h, "hook", h), own)]:
            del hooks[key]


def sources_of(module: nn.Module) -> dict[str, list[Tensor]]:
    """Names of a user's computed weights, each with the tensors that it is computed from."""
    found: dict[str, list[Tensor]] = {}
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        for name, steps in lists.items():
            found[name] = [*steps.parameters(), *steps.buffers()]
    # In their order: a later one may read what an earlier one computed.
    for hook in module._forward_pre_hooks.values():
        for source in _sources(hook):
            tensor = module._parameters.get(source, module._buffers.get(source))
            tensors = found.pop(source, []) if tensor is None else [tensor]
            found.setdefault(_name(hook), []).extend(tensors)
    if isinstance(module, _TABLES) and module.max_norm is not None:
        found["weight"] = [module.weight]
    return found


def _name(hook: Any) -> str:
    name: str = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
    return name


def _sources(hook: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a hook computes its tensor from; empty for every other hook."""
    endings: tuple[str, ...] = ()
    if isinstance(hook, WeightNorm):
        endings = ("_g", "_v")
    elif isinstance(hook, SpectralNorm):
        endings = ("_orig", "_u", "_v")
    elif isinstance(hook, prune.BasePruningMethod):
        endings = ("_orig", "_mask")
    return tuple(_name(hook) + ending for ending in endings)


def _evaluate_parametrizations(module: nn.Module) -> None:
    """Of ``nn.utils.parametrize``: properties of a class that was made for this one module."""
    names = list(module.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(module, name) for name in names}
    if not all(torch.equal(value, getattr(module, name)) for name, value in values.items()):
        return
    # Not by `remove_parametrizations`: it takes the properties from the class, which the user's
    # module has too, and writes into an original that other modules may share.
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        _hold(module, name, value)


def _hold(module: nn.Module, name: str, value: Tensor) -> None:
    # By `setattr`, as a recurrent module keeps its weights in a list besides.
    setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=False))
