"""Finding the parameters that torch functions use as the weight of a layer."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, fx, nn

from mpq.network.computed_uses import ComputedUse, Name, dotted, place_of
from mpq.network.constants import Computed
from mpq.network.examples import Batch
from mpq.network.expressions import evaluate
from mpq.network.modules import hooks
from mpq.network.open_weights import OpenWeights
from mpq.network.opened import Opened
from mpq.network.recognising import Recognising, how_read, is_lookup
from mpq.network.refusals import is_readable
from mpq.network.tracing import kind_of
from mpq.network.weight_calls import READERS
from mpq.network.weight_use import Block, Use, WeightCall

_CLOSED: Final = (Opened, torch.jit.ScriptModule, fx.GraphModule)
"""Modules of a class that cannot be another one."""
_UNSEEN: Final = (
    "read by no function that was seen: never, or within vmap or an operator of its own"
)


def find_free_weights(
    module: nn.Module,
    batches: Iterable[Batch],
    of_layers: Sequence[str] = (),
    matrices: set[str] | None = None,
    reasons: dict[str, str] | None = None,
    computed: list[ComputedUse] | None = None,
) -> dict[Name, Use]:
    """Parameters that are used as weights without a module, and always in the same way.

    Args:
        module: Our own copy of the model; left as found.
        batches: All the data, on the module's device. Read until no parameter is in question.
        of_layers: Modules of a layer's kind whose weight is in question, too, as they are not
            called, or cannot be a layer as a whole.
        matrices: Is given the names of vectors that are read as matrices, and are no layer all the
            same: their shape does not tell what they are.
        reasons: Is given the names of parameters with two axes or more, or read so, that are no
            layers, and what stands in the way.
        computed: Is given the weights that are computed from parameters and buffers; ``None``:
            these are not looked for.
    """
    candidates = _candidates(module, of_layers)
    if _is_closed(module) or not candidates:
        return {}
    sources = {} if computed is None else _sources(module, candidates)
    watching = _Watching(candidates, sources)
    layers = [m for m in module.modules() if kind_of(m) is not None]
    handles = [m.register_forward_hook(watching.called) for m in layers]
    with hooks(handles), torch.no_grad():
        for batch in batches:
            if not watching.candidates:
                break
            with watching:
                module(*batch.args, **batch.kwargs)
    if computed is not None:
        computed += _computed(module, watching, sources)
    if matrices is not None:
        left = watching.matrices - watching.uses.keys()
        matrices |= {dotted(n) for n, p in candidates.items() if id(p) in left}
    if reasons is not None:
        held = {name for each in computed or () for name in each.sources}
        held |= {dotted(n) for n, p in candidates.items() if id(p) in watching.uses}
        # Of weights alone: of a bias nobody asks.
        reasons |= {
            dotted(n): watching.why.get(id(p), _UNSEEN)
            for n, p in candidates.items()
            if dotted(n) not in held and (p.ndim > 1 or id(p) in watching.matrices)
        }
    return {name: watching.uses[id(p)] for name, p in candidates.items() if id(p) in watching.uses}


def _computed(
    module: nn.Module, watching: "_Watching", sources: Mapping[str, Tensor]
) -> list[ComputedUse]:
    found: list[ComputedUse] = []
    taken: set[Name] = set()
    for value, use in watching.computed_weights():
        result = evaluate(value.call, lambda name: sources[name].detach())
        if not bool(result.isfinite().all()):
            watching.spoil(value.sources, "computed into a weight with values that are not finite")
            continue
        name = place_of(module, value.call, sources, result, taken)
        taken.add(name)
        found.append(ComputedUse(name, use, value.text, result))
    return found


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


def _sources(module: nn.Module, candidates: Mapping[Name, nn.Parameter]) -> dict[str, Tensor]:
    """What weights may be computed from, by name: candidates, single numbers, and buffers."""
    owners: Counter[int] = Counter()
    found: dict[str, Tensor] = {dotted(name): p for name, p in candidates.items()}
    for path, each in module.named_modules():
        for own, tensor in (*each._parameters.items(), *each._buffers.items()):
            if tensor is None:
                continue
            owners[id(tensor)] += 1
            is_other = own in each._buffers or not tensor.ndim
            if is_other and not _is_closed(each) and _is_constant(tensor):
                found[dotted((path, own))] = tensor
    # What several modules have, another one may read.
    return {name: tensor for name, tensor in found.items() if owners[id(tensor)] == 1}


def _is_constant(tensor: Tensor) -> bool:
    """Whether a tensor is plain numbers, which may be a mask or indices."""
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    is_real = is_plain and not tensor.is_complex() and not tensor.is_quantized
    return is_real and tensor.is_contiguous() and tensor.numel() > 0


@final
class _Watching(Recognising):
    """Notes how candidates are used; what is used in two ways is none any more."""

    def __init__(
        self, candidates: Mapping[Name, nn.Parameter], sources: Mapping[str, Tensor]
    ) -> None:
        super().__init__(candidates.values(), sources)
        self.candidates = {id(p) for p in candidates.values()}
        self.uses: dict[int, Use] = {}
        self.matrices: set[int] = set()
        """Vectors that are read as matrices."""
        self.why: dict[int, str] = {}
        """What keeps parameters from being layers."""
        self._tables: dict[int, Use] = {}
        self._ids = {name: id(tensor) for name, tensor in sources.items()}
        self._computed: dict[str, tuple[Computed, Use]] = {}
        self._spoiled: set[str] = set()
        """Sources of which something else is read than weights."""

    def called(self, layer_module: nn.Module, _: Any, output: Any) -> None:
        """A layer was called: its weight is no candidate, unless it gave no tensor (a router)."""
        if isinstance(output, Tensor):
            self._drop(id(layer_module.weight), "the weight of a module that is called, too")

    def call(self, call: WeightCall) -> Any:
        """See ``Recognising``."""
        value = self.constants.standing(call.parameter)
        if value is not None:
            return self._use_computed(value, call)
        key = id(call.parameter)
        if call.parameter.ndim == 1:
            self.matrices.add(key)
        if is_lookup(call):  # what reads the copies says whether they are matrices
            self._tables[key] = call.use
        else:
            self._use(key, call.use)
        return None

    def _use_computed(self, value: Computed, call: WeightCall) -> None:
        _, known = self._computed.setdefault(value.text, (value, call.use))
        if is_lookup(call):
            self.spoil(value.sources, "computed into a table of matrices, and looked up in it")
        elif known != call.use:
            self.spoil(
                value.sources,
                f"computed into a weight that is used both as {known} and as {call.use}",
            )

    def computed_weights(self) -> list[tuple[Computed, Use]]:
        """Those whose sources nothing else reads; of the others, ``why`` says what does."""
        readers = Counter(name for value, _ in self._computed.values() for name in value.sources)
        for value, _ in self._computed.values():
            for name in value.sources:
                if readers[name] > 1:
                    self.spoil([name], "computed into more than one weight")
                if self._ids[name] in self.uses:
                    self.spoil([name], "used both by itself and to compute a weight")
        found = []
        for value, use in self._computed.values():
            spoiled = sorted(value.sources & self._spoiled)
            if not spoiled:
                found.append((value, use))
            for name in value.sources if spoiled else ():
                why = f"computed into a weight together with {spoiled[0]}, which is read besides"
                self.why.setdefault(self._ids[name], why)
        return found

    def spoil(self, names: Iterable[str], why: str) -> None:
        """Sources of which something else is read: no weight can take their place."""
        for name in names:
            self._drop(self._ids[name], why)

    def other(self, func: Any, blocks: Sequence[Block]) -> None:
        """See ``Recognising``."""
        for block in blocks:
            value = self.constants.standing(block.parameter)
            if value is not None:
                self.spoil(value.sources, how_read(func, block))
                continue
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
        if key in self.constants.names:
            self._spoiled.add(self.constants.names[key])
        # The first of all reasons; what is no candidate has none.
        if key in self.candidates:
            self.why[key] = why
        self.candidates.discard(key)
        self.uses.pop(key, None)
