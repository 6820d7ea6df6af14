"""Operands of operations between layers, as layers of the module whose ``forward`` has them."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from mpq.errors import MismatchError, ModelError
from mpq.network.handing import Site, begin, end, site_in, told
from mpq.network.operand import REPEATED, CallShape, Operand
from mpq.network.operations import call_of

_HANDED: Final = "_mpq_handed"
"""Attribute of a module of ours with operands."""
_LEFT: Final = ("left", "query", "probabilities")
_RIGHT: Final = ("right", "key", "values")
"""What operands of products are called: those on the left, and what each is multiplied with."""
_OTHER: Final = dict(zip((*_LEFT, *_RIGHT), (*_RIGHT, *_LEFT), strict=True))


@final
@dataclass(frozen=True)
class HandedOperand:
    """One operand that becomes a layer.

    Args:
        module: Path of the module whose ``forward`` has the operation.
        label: What the operation is called there: ``add_2``, ``qk``.
        leaf: What the operand is called: ``left``, ``query``.
        shape: Which call it is.
    """

    module: str
    label: str
    leaf: str
    shape: CallShape

    @property
    def role(self) -> str:
        """As ``Call.operands`` calls it."""
        if self.shape.kind != "matmul":
            return self.leaf
        return "left" if self.leaf in _LEFT else "right"


@final
class _Group(nn.Module):
    """The operands of one operation, by name; never called."""


@final
@dataclass(frozen=True)
class _Handed:
    """What a module hands on.

    Args:
        counts: On how many lines functions of a kind are called.
        paths: Kind, place and role to label and leaf.
    """

    counts: dict[str, int]
    paths: dict[tuple[str, int], dict[str, tuple[str, str]]]


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Site, ...]]] = WeakKeyDictionary()
"""Where a module's calls were when it was called first, by kind."""


def hand_on(module: nn.Module, operands: Iterable[HandedOperand]) -> None:
    """Makes operands layers, in place: ``<module>.<label>.<leaf>``.

    Args:
        module: Our own copy.
        operands: Of any of its modules.
    """
    like = next(module.parameters())
    by_module: dict[str, list[HandedOperand]] = {}
    for operand in operands:
        by_module.setdefault(operand.module, []).append(operand)
    for path, own in by_module.items():
        _hand_on(module.get_submodule(path), own, like)


def _hand_on(scope: nn.Module, operands: Sequence[HandedOperand], like: Tensor) -> None:
    counts: dict[str, int] = {}
    paths: dict[tuple[str, int], dict[str, tuple[str, str]]] = {}
    for operand in operands:
        shape = operand.shape
        if operand.label not in scope._modules:
            scope.add_module(operand.label, _Group().eval())
        scope._modules[operand.label].add_module(operand.leaf, Operand(shape, like))  # type: ignore[union-attr]
        counts[shape.kind] = shape.count
        role = paths.setdefault((shape.kind, shape.place), {})
        role[operand.role] = (operand.label, operand.leaf)
    vars(scope)[_HANDED] = _Handed(counts, paths)
    # Before the user's hooks and behind all: what hooks call is not the module's.
    scope.register_forward_pre_hook(_begin)
    scope.register_forward_hook(_end, always_call=True)


def free_label(scope: nn.Module, label: str) -> str:
    """The label, with underscores where the module has something else of that name."""
    while hasattr(scope, label):
        label += "_"
    return label


def give_operands(module: nn.Module, shapes: Mapping[str, CallShape]) -> None:
    """Hands on what an assignment names.

    Args:
        module: Our own copy.
        shapes: Name of each layer, such as ``layer1.0.add.left``.

    Raises:
        MismatchError: If the network has no module that a layer would be a part of.
    """
    modules = dict(module.named_modules())
    operands = []
    for name, shape in shapes.items():
        *path, label, leaf = name.split(".")
        if ".".join(path) not in modules:
            raise MismatchError(
                f"the assignment belongs to another network: this one lacks the module that would "
                f"have the operand {name!r}"
            )
        operands.append(HandedOperand(".".join(path), label, leaf, shape))
    hand_on(module, operands)


def _begin(module: nn.Module, _: Any) -> None:
    begin(module, _Calls(module))


def _end(module: nn.Module, _: Any, __: Any) -> None:
    calls = end(module)
    # After an error calls are missing, and the error says why.
    if isinstance(calls, _Calls) and sys.exc_info()[0] is None:
        calls.check()


@final
class _Calls:
    """One call of a module: hands its operands on."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._handed: _Handed = vars(module)[_HANDED]
        self._sites: dict[str, list[Site]] = {kind: [] for kind in self._handed.counts}

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See ``Listener``."""
        call = call_of(func, args, kwargs)
        if call is None or call.kind not in self._sites:
            return func(*args, **kwargs)
        site = site_in(self._module)
        if site is None:
            return func(*args, **kwargs)
        paths = self._handed.paths.get((call.kind, self._place(call.kind, site)))
        if paths is None:
            return func(*args, **kwargs)

        def hand(role: str, x: Tensor, macs: int = 0) -> Tensor:
            return self._operand(paths, role, x, macs)

        return call.compute(hand)

    def _operand(
        self, paths: Mapping[str, tuple[str, str]], role: str, x: Tensor, macs: int
    ) -> Tensor:
        path = paths.get(role)
        if path is None:
            return x
        label, leaf = path
        macs = round(macs / REPEATED.get())
        operand: Any = self._module._modules[label]._modules[leaf]  # type: ignore[union-attr]
        # A product's MACs are shared by both operands, where both are layers.
        other = _OTHER.get(role) in paths
        operand.macs = (macs + (role in _LEFT)) // 2 if other else macs
        found: Tensor = operand(x)
        return found

    def _place(self, kind: str, site: Site) -> int:
        """Which line of the kind it is, in the order in which they are reached first."""
        sites = self._sites[kind]
        if site in sites:
            return sites.index(site) + 1
        sites.append(site)
        self._check_site(kind)
        return len(sites)

    def _check_site(self, kind: str) -> None:
        """Refuses a call that is not where it was the first time."""
        sites, known = self._sites[kind], _KNOWN.get(self._module, {}).get(kind)
        place, count = len(sites), self._handed.counts[kind]
        if place > count:
            raise self._changed(f"calls {kind} on more than {count} lines, at {told(sites[-1])}")
        if known is not None and known[place - 1] != sites[-1]:
            was, now = told(known[place - 1]), told(sites[-1])
            raise self._changed(f"calls {kind} number {place} at {now}, which was at {was}")

    def check(self) -> None:
        """Refuses a call of the module in which something did not happen."""
        # Where a pass is resumed, a module's result is known, and its ``forward`` is not run.
        if not any(self._sites.values()):
            return
        for kind, count in self._handed.counts.items():
            if len(self._sites[kind]) < count:
                raise self._changed(
                    f"calls {kind} on {len(self._sites[kind])} lines and not on {count}"
                )
        _KNOWN.setdefault(self._module, {kind: tuple(sites) for kind, sites in self._sites.items()})

    def _changed(self, what: str) -> ModelError:
        return changed(type(self._module).__name__, what)


def changed(module: str, what: str) -> ModelError:
    """Of a module that computes otherwise with other examples."""
    return ModelError(
        f"{module} {what}: which operand is which is known by the order of calls, and that depends "
        "on the examples here; leave operands as they came (activations='inputs', --activations "
        "inputs)"
    )
