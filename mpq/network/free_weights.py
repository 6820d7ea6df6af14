"""Finding the parameters that torch functions use as the weight of a layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, fx, nn

from mpq.network.examples import Batch
from mpq.network.modules import hooks
from mpq.network.open_weights import Name, OpenWeights
from mpq.network.opened import Opened
from mpq.network.recognising import Recognising, how_read, is_lookup
from mpq.network.refusals import is_readable
from mpq.network.tracing import kind_of
from mpq.network.weight_calls import READERS
from mpq.network.weight_use import Block, Use, WeightCall

_CLOSED: Final = (Opened, torch.jit.ScriptModule, fx.GraphModule)
"""Modules of a class that cannot be another one."""


def find_free_weights(
    module: nn.Module,
    batches: Iterable[Batch],
    of_layers: Sequence[str] = (),
    matrices: set[str] | None = None,
    reasons: dict[str, str] | None = None,
) -> dict[Name, Use]:
    """Parameters that are used as weights without a module, and always in the same way.

    Args:
        module: Our own copy of the model; left as found.
        batches: All the data, on the module's device. Read until no parameter is in question.
        of_layers: Modules of a layer's kind whose weight is in question, too, as they are not
            called, or cannot be a layer as a whole.
        matrices: Is given the names of vectors that are read as matrices, and are no layer all the
            same: their shape does not tell what they are.
        reasons: Is given the names of parameters that functions read and that are no layers, and
            what stands in the way.
    """
    candidates = _candidates(module, of_layers)
    if _is_closed(module) or not candidates:
        return {}
    watching = _Watching(candidates)
    layers = [m for m in module.modules() if kind_of(m) is not None]
    handles = [m.register_forward_hook(watching.called) for m in layers]
    with hooks(handles), torch.no_grad():
        for batch in batches:
            if not watching.candidates:
                break
            with watching:
                module(*batch.args, **batch.kwargs)
    if matrices is not None:
        left = watching.matrices - watching.uses.keys()
        matrices |= {".".join(filter(None, n)) for n, p in candidates.items() if id(p) in left}
    if reasons is not None:
        reasons |= {
            ".".join(filter(None, n)): watching.why[id(p)]
            for n, p in candidates.items()
            if id(p) in watching.why
        }
    return {name: watching.uses[id(p)] for name, p in candidates.items() if id(p) in watching.uses}


def _is_closed(module: nn.Module) -> bool:
    # Another pass over the data may open more of what the first one has opened.
    return isinstance(module, _CLOSED) and not isinstance(module, OpenWeights)


def _candidates(module: nn.Module, of_layers: Sequence[str]) -> dict[Name, nn.Parameter]:
    """Each once: a parameter that several modules have is opened in the first one."""
    found: dict[Name, nn.Parameter] = {}
    modules = dict(module.named_modules())
    weights = {
        id(m._parameters.get("weight"))
        for n, m in modules.items()
        if kind_of(m) is not None and n not in of_layers
    }
    met: set[int] = set()
    for path, each in modules.items():
        if _is_closed(each):
            continue
        for name, p in each._parameters.items():
            if p is None or not p.ndim or id(p) in weights or id(p) in met or not p.numel():
                continue
            if type(p) is nn.Parameter and is_readable(p) and p.is_contiguous():
                if not p.is_complex():
                    found[path, name] = p
                met.add(id(p))
    return found


@final
class _Watching(Recognising):
    """Notes how candidates are used; what is used in two ways is none any more."""

    def __init__(self, candidates: Mapping[Name, nn.Parameter]) -> None:
        super().__init__(candidates.values())
        self.candidates = {id(p) for p in candidates.values()}
        self.uses: dict[int, Use] = {}
        self.matrices: set[int] = set()
        """Vectors that are read as matrices."""
        self.why: dict[int, str] = {}
        """What keeps parameters from being layers."""
        self._tables: dict[int, Use] = {}

    def called(self, layer_module: nn.Module, _: Any, output: Any) -> None:
        """A layer was called: its weight is no candidate, unless it gave no tensor (a router)."""
        if isinstance(output, Tensor):
            self._drop(id(layer_module.weight), "the weight of a module that is called, too")

    def call(self, call: WeightCall) -> Any:
        """See ``Recognising``."""
        key = id(call.parameter)
        if call.parameter.ndim == 1:
            self.matrices.add(key)
        if is_lookup(call):  # what reads the copies says whether they are matrices
            self._tables[key] = call.use
        else:
            self._use(key, call.use)

    def other(self, func: Any, blocks: Sequence[Block]) -> None:
        """See ``Recognising``."""
        for block in blocks:
            if block.parameter.ndim == 1 < block.tensor.ndim and func in READERS:
                self.matrices.add(id(block.parameter))
            table = self._tables.get(id(block.parameter))
            if block.gathered is not None and block.gathered.how == "embedding" and table:
                self._use(id(block.parameter), table)
                continue
            self._drop(id(block.parameter), how_read(func, block))

    def _use(self, key: int, use: Use) -> None:
        known = self.uses.setdefault(key, use) if key in self.candidates else use
        if known != use:
            self._drop(key, f"used both as {known} and as {use}")

    def _drop(self, key: int, why: str) -> None:
        # The first of all reasons; what is no candidate has none.
        if key in self.candidates:
            self.why[key] = why
        self.candidates.discard(key)
        self.uses.pop(key, None)
