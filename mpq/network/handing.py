"""Calls of torch functions that a module's own ``forward`` makes, seen and answered by a listener.

A ``TorchFunctionMode`` sees all calls and not whose they are: the frames of Python say that.
"""

import sys
from contextvars import ContextVar
from functools import partial
from types import CodeType, FrameType
from typing import Any, Final, Protocol, TypeAlias

from torch import nn
from torch.nn.modules import module as _module
from torch.overrides import TorchFunctionMode

Site: TypeAlias = tuple[tuple[str, str, int, int], ...]
"""Where a call is: file, function, line and instruction, from the call to the ``forward``."""

_CACHES: Final = "transformers.cache_utils"
_CALLS: Final = ("_call_impl", "inner", "_slow_forward")
"""Functions of torch's that call a ``forward`` or a hook."""


class Listener(Protocol):
    """Answers calls of torch functions while a module's ``forward`` runs, or one that it calls."""

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function returns."""


class _Handing(TorchFunctionMode):
    """Hands calls to the listener of the innermost module that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[nn.Module, Listener]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.stack[-1][1].called(func, args, kwargs or {})


_RUNNING: ContextVar[_Handing | None] = ContextVar("_RUNNING", default=None)


def begin(module: nn.Module, listener: Listener) -> None:
    """Before a module's ``forward``: from here on the listener is asked."""
    mode = _RUNNING.get()
    if mode is None:
        mode = _Handing()
        mode.__enter__()  # type: ignore[no-untyped-call]
        _RUNNING.set(mode)
    mode.stack.append((module, listener))


def end(module: nn.Module) -> Listener | None:
    """After it, also after an error; ``None`` where it was not begun, as another hook failed."""
    mode = _RUNNING.get()
    if mode is None or mode.stack[-1][0] is not module:
        return None
    _, listener = mode.stack.pop()
    if not mode.stack:
        _RUNNING.set(None)
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    return listener


def site_in(module: nn.Module) -> Site | None:
    """Where in the module's ``forward`` the call is that is being answered.

    ``None``: it is in a hook, in the ``forward`` of another module that this one calls, or in a
    cache of transformers, which joins what came before with what comes, as often as it is asked.
    What has taken the place of the class's ``forward`` for a while is no part of it.
    """
    frame: FrameType | None = sys._getframe(1)
    entry, site, of_class = None, list[tuple[str, str, int, int]](), _code(type(module).forward)
    is_inside = False
    while frame is not None:
        code = frame.f_code
        if frame.f_globals.get("__name__") == _CACHES:
            return None
        if code.co_filename != _module.__file__ or code.co_name not in _CALLS:
            if not is_inside:
                site.append((code.co_filename, code.co_name, frame.f_lineno, frame.f_lasti))
            entry, is_inside = code, is_inside or code is of_class
        elif code.co_name != "_slow_forward":
            own = _code(module.forward)
            is_own = frame.f_locals.get("self") is module and own in (None, entry)
            return tuple(site) if is_own else None
        frame = frame.f_back
    return None


def _code(function: Any) -> CodeType | None:
    while isinstance(function, partial):
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def told(site: Site) -> str:
    """The line of the network's own code, for people."""
    own = [x for x in site if not x[0].startswith(_LIBRARIES)]
    file, function, line, _ = (own or site)[0]
    return f"{file.rpartition('/')[2]}:{line} ({function})"


_LIBRARIES: Final = (__file__.rpartition("network")[0], _module.__file__.rpartition("nn")[0])
