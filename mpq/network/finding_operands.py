"""Finding the operands of operations between layers, in all examples."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from mpq.errors import ModelError
from mpq.network.arguments import tensors_in
from mpq.network.attention import OpenAttention
from mpq.network.examples import Batch
from mpq.network.handed_operands import HandedOperand, changed, free_label, hand_on
from mpq.network.handing import Site, begin, end, site_in, told
from mpq.network.layer import PRODUCTS
from mpq.network.modules import hooks
from mpq.network.opened import Opened
from mpq.network.operand import CallShape, operands_of
from mpq.network.operations import Call, call_of, is_numbers
from mpq.network.tracing import kind_of

_SOFTMAX: Final = (torch.softmax, Tensor.softmax, F.softmax)
_SOURCES: Final = ("new_", "_like")
"""In the names of functions that read a tensor's shape alone."""
_CHOOSING: Final = ("__getitem__", "index_select")
"""Functions by which an input chooses among numbers that depend on none, such as weights."""
_VIEWS: Final = {
    "__get__", "__getitem__", "neg", "__neg__", "negative", "view", "reshape", "transpose",
    "permute", "chunk", "split", "narrow", "unbind", "flatten", "unflatten", "expand", "contiguous",
    "squeeze", "unsqueeze", "select", "t", "to", "float", "clone",
}  # fmt: skip
"""Functions whose result has the numbers of what they read, or their negatives: one scale fits."""
CONSTANT: Final = "it depends on no input"
_SCALED: Final = "it is multiplied by what depends on no input"
_MASK: Final = "it meets a mask"


@final
@dataclass(frozen=True)
class _Event:
    """One call in a module's ``forward``.

    Args:
        kind: As in ``Call``; or ``softmax``; or ``other``: of two tensors, and not covered.
        site: Where it is.
        data: Roles of what depends on the input.
        constants: Roles of what does not.
        is_mask: Whether an operand is one that hides what it is added to.
        is_joined: Whether what is joined comes from several tensors.
        name: Of the function.
    """

    kind: str
    site: Site
    data: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    is_mask: bool = False
    is_joined: bool = True
    name: str = ""


@final
@dataclass
class _Seen:
    """What all passes showed: events of every call of every module, and what tensors are."""

    calls: dict[int, list[list[_Event]]] = field(default_factory=dict)
    _constants: Any = field(default_factory=WeakIdKeyDictionary)
    _roots: Any = field(default_factory=WeakIdKeyDictionary)
    _numbers: Iterator[int] = field(default_factory=count)

    def hold(self, tensor: Tensor) -> None:
        """It depends on no input."""
        self._constants[tensor] = True

    def is_data(self, x: Tensor) -> bool:
        """Whether it depends on the input, as far as is known."""
        return not isinstance(x, nn.Parameter) and x not in self._constants

    def root(self, x: Tensor) -> int:
        """The same number for all that is a view of one tensor."""
        if x not in self._roots:
            self._roots[x] = next(self._numbers)
        return int(self._roots[x])

    def made(self, func: Any, given: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """A function gave that."""
        name = str(getattr(func, "__name__", ""))
        reads = tensors_in([*given, *kwargs.values()])
        if name in _CHOOSING:
            reads = [x for x in reads if x.is_floating_point()] or reads
        is_source = name.startswith(_SOURCES[0]) or name.endswith(_SOURCES[1])
        is_constant = is_source or not any(map(self.is_data, reads))
        is_view = name in _VIEWS and bool(reads)
        for tensor in tensors_in(result):
            if is_constant:
                self.hold(tensor)
            else:
                self._constants.pop(tensor, None)
            if is_view:
                self._roots[tensor] = self.root(reads[0])
        # What is written into a constant makes it none: `x[:, 0] = y`, `x += y`.
        if (name == "__setitem__" or name.endswith("_")) and reads and not is_constant:
            self._constants.pop(reads[0], None)


def open_operands(module: nn.Module, batches: Iterable[Batch]) -> dict[str, str]:
    """Makes the operands of a network's operations layers, in place.

    Runs all batches once. What depends on no input is left as it came, as is what is added to a
    mask, multiplied by a constant, or computed within layers, norms and activation functions.

    Args:
        module: Our own copy, with key-value caches if they are layers.
        batches: On its device.

    Returns:
        Name of what is left, and why.

    Raises:
        ModelError: If the order of a module's calls depends on the examples.
    """
    seen = _Seen()
    for part in module.modules():
        stored = (*part.buffers(recurse=False), *vars(part).values())
        for tensor in (x for x in stored if isinstance(x, Tensor)):
            seen.hold(tensor)
    handles = []
    for part in _scopes(module):
        handles += [
            part.register_forward_pre_hook(partial(_begin, seen), with_kwargs=True),
            part.register_forward_hook(_end, always_call=True),
        ]
    with hooks(handles), torch.no_grad():
        for batch in batches:
            module(*batch.args, **batch.kwargs)
    operands: list[HandedOperand] = []
    left: dict[str, str] = {}
    for name, part in module.named_modules():
        if id(part) in seen.calls:
            found = _Found(name, part, seen.calls[id(part)])
            operands += found.operands()
            left |= found.left
    hand_on(module, operands)
    return left


def _scopes(module: nn.Module) -> list[nn.Module]:
    """Modules in whose ``forward`` operations are looked for: not within layers."""
    inside: set[int] = set()
    for part in module.modules():
        if kind_of(part) is not None or _is_closed(part):
            inside.update(map(id, part.modules()))
    return [part for part in module.modules() if id(part) not in inside]


def _is_closed(part: nn.Module) -> bool:
    """Whether it is a module of torch's that we write out: a recurrent network, ``Bilinear``."""
    is_ours = isinstance(part, Opened) and "forward" in vars(part.opened_as)
    return is_ours and not isinstance(part, OpenAttention)


def _is_one_operation(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a norm or an activation function: of one tensor, and no module within."""
    is_plain = not part._modules and all(p.ndim < 2 for p in part.parameters(recurse=False))
    return is_plain and len(tensors_in([*args, *kwargs.values()])) == 1


def _begin(seen: _Seen, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    events: list[_Event] = []
    is_one = _is_one_operation(part, args, kwargs)
    if not is_one:
        seen.calls.setdefault(id(part), []).append(events)
    begin(part, _Looking(seen, part, None if is_one else events))


def _end(part: nn.Module, _: Any, __: Any) -> None:
    end(part)


@final
@dataclass(frozen=True)
class _Looking:
    """Writes down what a module's ``forward`` calls; see ``Listener``.

    Args:
        seen: What is known of tensors.
        module: The module.
        events: What is added to; ``None``: nothing is.
    """

    seen: _Seen
    module: nn.Module
    events: list[_Event] | None

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function returns, written down."""
        call = None if self.events is None else call_of(func, args, kwargs)
        event = None if self.events is None else self._event(func, call, args, kwargs)
        result = func(*args, **kwargs)
        if event is not None and self.events is not None and tensors_in(result):
            self.events.append(event)
        self.seen.made(func, args, kwargs, result)
        return result

    def _event(
        self, func: Any, call: Call | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Event | None:
        name = str(getattr(func, "__name__", ""))
        read = [x for x in tensors_in([*args, *kwargs.values()]) if is_numbers(x)]
        data = [x for x in read if self.seen.is_data(x)]
        if call is None and func not in _SOFTMAX and len(data) < 2:
            return None
        site = site_in(self.module)
        if site is None:
            return None
        if func in _SOFTMAX:
            return _Event("softmax", site)
        if call is None:
            return _Event("other", site, name=name)
        named = call.operands.items()
        return _Event(
            call.kind,
            site,
            tuple(role for role, x in named if self.seen.is_data(x)),
            tuple(role for role, x in named if not self.seen.is_data(x)),
            any(_hides(x) for _, x in named),
            len({self.seen.root(x) for _, x in named}) > 1,
            name,
        )


def _hides(x: Tensor) -> bool:
    """Whether it has numbers that leave nothing of what they are added to."""
    return bool((x < torch.finfo(x.dtype).min / 2).any())


@final
class _Found:
    """Operands of one module.

    Args:
        name: Path of the module.
        module: The module.
        calls: Events of each of its calls.
    """

    def __init__(self, name: str, module: nn.Module, calls: Sequence[Sequence[_Event]]) -> None:
        self._name, self._module, self._calls = name, module, calls
        self._has_caches = any(operands_of(module))
        self._is_attention = _is_attention(calls[0])
        self.left: dict[str, str] = {}

    def operands(self) -> list[HandedOperand]:
        """In the order of kinds and calls."""
        found: list[HandedOperand] = []
        for kind in dict.fromkeys(event.kind for events in self._calls for event in events):
            each = [[event for event in events if event.kind == kind] for events in self._calls]
            if kind == "other":
                self._leave_others(each)
            elif kind != "softmax":
                found += self._of_kind(kind, each)
        return found

    def _leave_others(self, each: Sequence[Sequence[_Event]]) -> None:
        for name in dict.fromkeys(event.name for events in each for event in events):
            self.left[f"{self._name}.{name}".lstrip(".")] = "the function is not covered"

    def _of_kind(self, kind: str, each: Sequence[Sequence[_Event]]) -> list[HandedOperand]:
        places = _by_line(each)
        if places is None:
            events = [event for events in each for event in events]
            if any(self._roles(kind, 1, [event]) for event in events):
                raise self._changed(kind, each)
            return []
        roles = [self._roles(kind, place, events) for place, events in enumerate(places, start=1)]
        return [
            HandedOperand(self._name, label, leaf, CallShape(kind, place, len(places)))
            for place, own in enumerate(roles, start=1)
            for label, leaf in (self._called(kind, place, role) for role in own)
        ]

    def _changed(self, kind: str, each: Sequence[Sequence[_Event]]) -> ModelError:
        """Says where two calls of the module are unlike."""
        first, *others = [[*dict.fromkeys(event.site for event in x)] for x in each if x]
        other = next(sites for sites in others if sites != first)
        pairs = (x for x in zip(first, other, strict=False) if x[0] != x[1])
        was, now = next(pairs, (None, None))
        what = f"calls {kind} on {len(other)} lines and on {len(first)}"
        if was and now:
            what = f"calls {kind} at {told(now)}, which was at {told(was)}"
        return changed(f"{self._name or 'the network'} ({type(self._module).__name__})", what)

    def _roles(self, kind: str, place: int, events: Sequence[_Event]) -> tuple[str, ...]:
        """Of the operands of one call, which had these events, those that become layers."""
        data = tuple(dict.fromkeys(role for event in events for role in event.data))
        constants = [role for role in events[0].constants if role not in data]
        if not data:
            return ()
        if any(event.is_mask for event in events):
            return self._leave(kind, place, data, _MASK)
        if kind == "cat":
            return ("whole",) if any(event.is_joined for event in events) else ()
        if kind == "attention":
            return self._of_attention(data)
        if constants and kind != "add":
            return self._leave(kind, place, data, _SCALED)
        self._leave(kind, place, constants, CONSTANT)
        # A key-value cache's layer rounds what stands on the right.
        has_cache = kind in PRODUCTS and self._has_caches
        return tuple(role for role in data if not (has_cache and role == "right"))

    def _of_attention(self, data: Sequence[str]) -> tuple[str, ...]:
        of_cache = ("key", "values") if self._has_caches else ()
        found = {*data, "probabilities"}.difference(of_cache)
        return tuple(x for x in ("query", "key", "probabilities", "values") if x in found)

    def _leave(self, kind: str, place: int, roles: Iterable[str], why: str) -> tuple[str, ...]:
        for role in roles:
            label, leaf = self._called(kind, place, role)
            self.left[f"{self._name}.{label}.{leaf}".lstrip(".")] = why
        return ()

    def _called(self, kind: str, place: int, role: str) -> tuple[str, str]:
        """Label and leaf of an operand."""
        label, leaf = kind, role
        if kind == "matmul" and self._is_attention:
            label = "qk" if place == 1 else "pv"
            leaf = {"qk": ("query", "key"), "pv": ("probabilities", "values")}[label][
                role == "right"
            ]
            place = 1
        elif kind == "attention":
            label = "qk" if role in ("query", "key") else "pv"
        label = label if place == 1 else f"{label}_{place}"
        return free_label(self._module, label), leaf


def _by_line(each: Sequence[Sequence[_Event]]) -> list[list[_Event]] | None:
    """Events of every line, from those of a kind in each call of the module.

    In the order in which lines are reached first, that of a loop once; ``None``: it is not the same
    in all calls.
    """
    lines = [[*dict.fromkeys(event.site for event in events)] for events in each if events]
    if any(own != lines[0] for own in lines):
        return None
    events = [event for events in each for event in events]
    return [[event for event in events if event.site == line] for line in lines[0]]


def _is_attention(events: Sequence[_Event]) -> bool:
    """Whether there are two products, and a softmax between them."""
    kinds = [event.kind for event in events]
    at = [i for i, kind in enumerate(kinds) if kind == "matmul"]
    return len(at) == 2 and "softmax" in kinds[at[0] : at[1]] and "attention" not in kinds
