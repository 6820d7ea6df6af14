"""What becomes of a module that uses its weights without calling a layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Final, cast, final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError


@final
@dataclass(frozen=True)
class Stored:
    """A parameter of the closed module, as layers hold it.

    Args:
        parts: Paths of the parameters that make it up, one behind the other along the first axis.
        shape: Its shape in the closed module, and in a state dict.
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The parameter from its parts."""
        # The very object where it is one, so that who looks for shared parameters finds them.
        if len(parts) == 1 and tuple(parts[0].shape) == self.shape:
            return parts[0]
        return torch.cat(list(parts)).reshape(self.shape)

    def split(self, tensor: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """What the parts are in another tensor of that shape."""
        rows = tensor.reshape(-1, *parts[0].shape[1:])
        return list(rows.split([len(part) for part in parts]))


class Opened(nn.Module):
    """A module of torch's that computes through layers which are called.

    It is the very object that was opened, of a subclass of its class: references, hooks, attributes
    and ``isinstance`` hold. Under their old names its parameters can be read, and state dicts have
    these names, so that they fit the closed module.
    """

    closed: ClassVar[type[nn.Module]]
    opened_as: ClassVar[type["Opened"]]
    _stored: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Finds what is no plain attribute; a parameter of the closed module as it is now."""
        stored = self.__dict__.get("_stored", {}).get(name)
        if stored is not None:
            return stored.join([self.get_parameter(path) for path in stored.parts])
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets all but parameters of the closed module.

        Raises:
            ModelError: If it is one of those: what it is set to would not be computed with.
        """
        if name in self.__dict__.get("_stored", {}):
            raise ModelError(
                f"the model sets {name!r} of an {self.closed.__name__} that is opened into layers; "
                "set it before the search, and not in a forward pass"
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles: a class that was made here cannot be found by its name."""
        _, (_, *args), *rest = cast(tuple[Any, ...], super().__reduce_ex__(max(protocol, 2)))
        return (_blank, (self.opened_as, self.closed, *args), *rest)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of the closed module."""
        found = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for name, stored in self._stored.items():
            paths = [prefix + path for path in stored.parts]
            # Where something else has taken a layer's place, its own names say so.
            if all(path in found for path in paths):
                found[prefix + name] = stored.join([found.pop(path) for path in paths])
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, stored in self._stored.items():
            tensor = state_dict.get(prefix + name)
            # What is missing or of another shape is left for `load_state_dict` to complain of.
            if tensor is not None and tuple(tensor.shape) == stored.shape:
                del state_dict[prefix + name]
                parts = stored.split(tensor, [self.get_parameter(path) for path in stored.parts])
                named = zip(stored.parts, parts, strict=True)
                state_dict.update({prefix + path: part for path, part in named})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Views:
    """Parameters that are parts of others' memory: the same parts for everybody who asks."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, tuple[int, ...]], tuple[nn.Parameter, ...]] = {}

    def of(
        self, parameter: nn.Parameter, count: int, shape: tuple[int, ...]
    ) -> tuple[nn.Parameter, ...]:
        """So many parts along the first axis, each of that shape.

        A weight that two modules share is then shared by the layers that both are opened into.
        """
        key = (id(parameter), count, shape)
        if key not in self._known:
            parts = parameter.detach().chunk(count)
            views = (nn.Parameter(part.view(shape), requires_grad=False) for part in parts)
            self._known[key] = tuple(views)
        return self._known[key]


def open_as(
    module: nn.Module,
    opened_as: type[Opened],
    layers: Mapping[str, nn.Module],
    stored: Mapping[str, Stored],
) -> None:
    """Makes a module compute through layers, in place.

    Args:
        module: The module, which keeps all but the parameters that moved into layers.
        opened_as: How it computes from now on.
        layers: Attribute of the module to the layer that becomes a part of it.
        stored: Name of a parameter that moved, to where it is now.
    """
    for name in stored:
        del module._parameters[name]
    for name, layer in layers.items():
        # New modules are in training mode, whatever the original's.
        module.add_module(name, layer.train(module.training))
    # Past `__setattr__`, which asks for it.
    module.__dict__["_stored"] = dict(stored)
    module.__class__ = _open_class(opened_as, type(module))


def computes_as(module: nn.Module, closed: type[nn.Module]) -> bool:
    """Whether a module computes what a class of torch's computes, or calls that by ``super()``."""
    return (
        isinstance(module, closed)
        # Set on the object, a function takes the place of the class's.
        and "forward" not in vars(module)
        and all(_goes_on(own, module) for own in _own_forwards(type(module), closed))
    )


def _own_forwards(kind: type, closed: type) -> list[Any]:
    """Forwards of the classes that lie before torch's."""
    before = kind.__mro__[: kind.__mro__.index(closed)]
    return [vars(each)["forward"] for each in before if "forward" in vars(each)]


def _goes_on(forward: Any, module: nn.Module) -> bool:
    """Whether a forward says ``super()`` and names no weight, so that the next one has them."""
    names = set(forward.__code__.co_names) if isinstance(forward, FunctionType) else set()
    own = {*module._parameters, "_parameters", "parameters", "_flat_weights", "all_weights"}
    return "super" in names and not names & own


def linear(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Linear:
    """A linear layer of these very parameters."""
    outputs, inputs = weight.shape
    # On meta nothing is initialised: neither time nor random numbers of the user's are spent.
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


_CLASSES: Final[dict[tuple[type, type], type[nn.Module]]] = {}
"""Made so far: two modules of one class are opened into one class."""


def _open_class(opened_as: type[Opened], closed: type[nn.Module]) -> type[nn.Module]:
    key = (opened_as, closed)
    if key not in _CLASSES:
        members = {"closed": closed, "opened_as": opened_as, "__doc__": opened_as.__doc__}
        made: Any = _OpenClass(f"Open{closed.__name__}", key, members)
        _CLASSES[key] = made
    return _CLASSES[key]


class _OpenClass(type):
    """Puts what a module is opened as behind the user's subclasses, right before torch's class."""

    def mro(cls) -> list[type]:
        """Then ``super().forward()`` of a subclass is the opened one."""
        found = list(super().mro())
        opened_as, closed = cls.__bases__
        places = [i for i, kind in enumerate(closed.__mro__) if _is_torch(kind)]
        users = list(closed.__mro__[: places[0]]) if places else []
        # What keeps the module's own forward, as `OpenWeights` does, has nothing to put there.
        computes = any(
            "forward" in vars(kind) for kind in opened_as.__mro__ if issubclass(kind, Opened)
        )
        if not computes or not any("forward" in vars(kind) for kind in users):
            return found
        return [cls, *users, *(kind for kind in found[1:] if kind not in users)]


def _is_torch(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.modules.")


def _blank(opened_as: type[Opened], closed: type[nn.Module], *args: Any) -> nn.Module:
    opened = _open_class(opened_as, closed)
    return opened.__new__(opened, *args)
