"""Layers whose weight a function uses, too: a head that is ``F.linear(h, embed.weight)``.

The function becomes a layer of its own, with the very parameter: as where two modules share one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.modules import hooks
from mpq.network.open_weights import OpenWeights, layer_of, open_root
from mpq.network.opened import Opened
from mpq.network.recognising import Recognising
from mpq.network.refusals import is_readable
from mpq.network.tracing import kind_of
from mpq.network.weight_layout import CHANNEL_FIRST, layout_of
from mpq.network.weight_use import Block, Use, WeightCall

_OTHER: Final = {"embedding": "linear", "linear": "embedding"}
"""A layer's kind to that of the function. Of one kind, a function could not be told from the call
of the layer itself, and of another layout, scales would lie along another axis."""


def find_tied_calls(
    module: nn.Module, batches: Iterable[Batch], names: Sequence[str]
) -> dict[str, Use]:
    """How functions use layers' weights, where that is always as one layer with the same rows.

    Args:
        module: Our own copy of the model; left as found.
        batches: All the data, on the module's device.
        names: Layers whose weight a function reads.
    """
    if type(module) is not OpenWeights and isinstance(module, Opened):
        return {}
    layers = {name: module.get_submodule(name) for name in names if name}
    asked = {name: layer for name, layer in layers.items() if _can_be_tied(layer)}
    if not asked:
        return {}
    watching = _Watching(asked)
    handles = [m.register_forward_pre_hook(watching.enter) for m in asked.values()]
    handles += [m.register_forward_hook(watching.leave) for m in asked.values()]
    with hooks(handles), torch.no_grad():
        for batch in batches:
            with watching:
                module(*batch.args, **batch.kwargs)
    return {name: use for name, m in asked.items() if (use := watching.use(m)) is not None}


def _can_be_tied(layer: nn.Module) -> bool:
    kind, weight = kind_of(layer), layer._parameters.get("weight")
    return (
        kind in _OTHER
        and layout_of(layer) is CHANNEL_FIRST
        and type(weight) is nn.Parameter
        and is_readable(weight)
        and weight.is_contiguous()
        and not weight.is_complex()
        and not hasattr(layer, _OTHER[kind])
    )


@final
class _Watching(Recognising):
    """Notes how functions outside of the layers use their weights."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(layer.weight for layer in layers.values())  # type: ignore[misc]
        self._uses: dict[int, set[Use | None]] = {}
        self._own: dict[int, set[Use]] = {}
        self._entered: list[int] = []

    def use(self, layer: nn.Module) -> Use | None:
        """The one use of a layer's weight by functions, if it can be a layer of its own."""
        assert isinstance(layer.weight, Tensor)
        found, key = self._uses.get(id(layer.weight), set()), id(layer.weight)
        expected = Use(_OTHER[kind_of(layer) or ""], tuple(layer.weight.shape))
        # What the layer does itself could not be told apart.
        return expected if found == {expected} and expected not in self._own.get(key, ()) else None

    def enter(self, layer: nn.Module, _: Any) -> None:
        """Before a layer, in which its weight may be read."""
        self._entered.append(id(layer.weight))

    def leave(self, *_: Any) -> None:
        """After a layer."""
        self._entered.pop()

    def call(self, call: WeightCall) -> Any:
        """See ``Recognising``."""
        key = id(call.parameter)
        if key in self._entered:
            self._own.setdefault(key, set()).add(call.use)
        else:
            self._uses.setdefault(key, set()).add(call.use)

    def other(self, _: Any, blocks: Sequence[Block]) -> None:
        """See ``Recognising``."""
        for block in blocks:
            if id(block.parameter) not in self._entered:
                self._uses.setdefault(id(block.parameter), set()).add(None)


def tie_calls(root: nn.Module, uses: Mapping[str, Use]) -> None:
    """Makes functions that use layers' weights call layers, in place.

    The layer of ``F.linear(h, embed.weight)`` is ``embed.linear``. State dicts stay as they are.

    Args:
        root: Our own copy of the model.
        uses: Layer to how functions use its weight.
    """
    for name, use in uses.items():
        owner = root.get_submodule(name)
        weight = owner.weight
        assert isinstance(weight, nn.Parameter)
        owner.add_module(use.kind, layer_of(use.kind, weight).train(owner.training))
        vars(owner)["tied_call"] = use
        owner._register_state_dict_hook(_leave_out)
        owner._register_load_state_dict_pre_hook(_bring_in, with_module=True)
    if uses:
        open_root(root)


def tied_calls_of(module: nn.Module, layers: Mapping[str, Use]) -> dict[str, Use]:
    """Which layers are functions' uses of other layers' weights, by the layers' names."""
    modules = dict(module.named_modules(remove_duplicate=False))
    found = {}
    for name, use in layers.items():
        path, _, own = name.rpartition(".")
        owner = modules.get(path)
        if name in modules or not path or owner is None or not _can_be_tied(owner):
            continue
        if own == use.kind == _OTHER[kind_of(owner) or ""]:
            found[path] = use
    return found


def _leave_out(owner: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    state.pop(f"{prefix}{vars(owner)['tied_call'].kind}.weight", None)


def _bring_in(owner: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}{vars(owner)['tied_call'].kind}.weight"] = state[f"{prefix}weight"]
