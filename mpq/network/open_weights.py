"""Modules whose parameters are used by torch functions, through layers that are called.

Fused experts, routers, attention pools: no module is called there, so that nothing can observe or
quantize the weights. Here every function that reads one calls a layer instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.computed_uses import ComputedUse, Name, dotted
from mpq.network.opened import Opened, linear, open_as
from mpq.network.recognising import Recognising, is_lookup
from mpq.network.weight_use import Block, Use, WeightCall

_CONVOLUTIONS: Final = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}


@final
@dataclass(frozen=True)
class ComputedLayers:
    """Layers whose weight is computed.

    Args:
        text: How; see ``expressions``.
        use: How it is cut into layers.
        sources: Names of what it is computed from, in the whole network.
    """

    text: str
    use: Use
    sources: tuple[str, ...]


@final
@dataclass(frozen=True)
class FreeWeight:
    """A parameter that layers hold as ``cut`` gives it.

    Args:
        name: What messages call the parameter.
        parts: Paths of the layers' weights.
        shape: The parameter's.
        use: How it is cut into layers.
        original: The parameter, by whose memory calls are recognised.
    """

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    use: Use
    original: nn.Parameter

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The parameter from its parts, as it is in a state dict."""
        cut = self.use.cut(self.original)
        same = zip(parts, cut, strict=True)
        # The very memory where nothing was changed, so that it is not taken twice.
        if all(x.data_ptr() == y.data_ptr() for x, y in same):
            return self.original
        return self.use.join(parts, self.shape)

    def split(self, tensor: Tensor, _: Sequence[Tensor]) -> list[Tensor]:
        """What the parts are in another tensor of that shape."""
        return self.use.cut(tensor)


class OpenWeights(Opened):
    """A module whose parameters are layers when torch functions read them.

    A matrix ``weight`` becomes the layer ``<name>.weight``, an expert of a parameter ``w`` the
    layer ``<name>.w.<expert>``. The network's root is one, too: its calls have the mode.

    A weight that functions compute from parameters and buffers is a layer as well, with what comes
    out. State dicts have it under the layer's own name, and have no more what it is computed from.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As of the closed module."""
        if "_is_root" not in vars(self):
            return super().__call__(*args, **kwargs)
        with _Calls(self):
            return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Finds what is no plain attribute; of a parameter that is opened, the original."""
        stored = self.__dict__.get("_stored", {}).get(name)
        absorbed: Tensor | None = self.__dict__.get("_absorbed", {}).get(name)
        if absorbed is not None:
            return absorbed
        return super().__getattr__(name) if stored is None else stored.original

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets all but parameters that are opened; a layer's place can be taken by a module.

        Raises:
            ModelError: See ``Opened``.
        """
        if isinstance(value, nn.Module) and name in self._modules:
            self._modules[name] = value
        elif name in self.__dict__.get("_absorbed", {}):
            raise ModelError(
                f"the model sets {name!r} of a {self.closed.__name__}, from which a weight is "
                "computed; set it before the search, and not in a forward pass"
            )
        else:
            super().__setattr__(name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """As of any module; torch's own takes a parameter for the layers of the same name."""
        found: nn.Module = self
        for atom in target.split(".") if target else ():
            child = found._modules.get(atom)
            if child is None:
                raise AttributeError(f"{type(found).__name__} has no submodule {atom!r}")
            found = child
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = {}
        for name, stored in self._free.items():
            # Calls are recognised by it, wherever it is.
            original = nn.Parameter(fn(stored.original), requires_grad=False)
            moved[name] = FreeWeight(stored.name, stored.parts, stored.shape, stored.use, original)
        self.__dict__["_stored"] = moved
        absorbed = self.__dict__.get("_absorbed", {})
        # Masks and indices keep their type: `fn` asks for it, as of buffers.
        self.__dict__["_absorbed"] = {name: fn(tensor) for name, tensor in absorbed.items()}
        return self

    @property
    def _free(self) -> Mapping[str, FreeWeight]:
        found: dict[str, FreeWeight] = self.__dict__["_stored"]
        return found

    def layers_of(self, name: str) -> Sequence[nn.Module]:
        """The layers of a parameter."""
        layer = self._modules[name]
        assert layer is not None
        return list(layer) if isinstance(layer, nn.ModuleList) else [layer]

    @property
    def absorbed(self) -> Mapping[str, Tensor]:
        """Parameters and buffers from which weights are computed."""
        found: dict[str, Tensor] = self.__dict__.get("_absorbed", {})
        return found

    @property
    def computed(self) -> Mapping[str, ComputedLayers]:
        """The weights that are computed, by where their layers are."""
        found: dict[str, ComputedLayers] = self.__dict__.get("_computed", {})
        return found


@final
class _Calls(Recognising):
    """Within this block functions that read opened parameters call their layers."""

    is_hiding = True

    def __init__(self, root: nn.Module) -> None:
        self._found: dict[int, tuple[FreeWeight, OpenWeights, str]] = {}
        self._computed: dict[str, tuple[ComputedLayers, Sequence[nn.Module]]] = {}
        sources: dict[str, Tensor] = {}
        for path, owner in root.named_modules():
            if isinstance(owner, OpenWeights):
                for name, free in owner._free.items():
                    self._found.setdefault(id(free.original), (free, owner, name))
                for name, made in owner.computed.items():
                    self._computed[made.text] = (made, owner.layers_of(name))
                sources |= {dotted((path, name)): t for name, t in owner.absorbed.items()}
        # Of layers that functions use, too (`tied_calls`): by the weight that they have just now.
        self._tied: dict[int, nn.Module] = {
            id(m.weight): m for m in root.modules() if "tied_call" in vars(m)
        }
        weights: list[Any] = [m.weight for m in self._tied.values()]
        matrices = [t for t in sources.values() if t.is_floating_point() and t.ndim]
        originals = [free.original for free, _, _ in self._found.values()]
        super().__init__([*originals, *weights, *matrices], sources)

    def call(self, call: WeightCall) -> Any:
        """See ``Recognising``."""
        value = self.constants.standing(call.parameter)
        if value is not None or id(call.parameter) in self.constants.names:
            return self._call_computed(call, "" if value is None else value.text)
        tied = self._tied.get(id(call.parameter))
        if tied is not None:
            is_tied = vars(tied)["tied_call"] == call.use
            return call.compute([tied.get_submodule(call.use.kind)]) if is_tied else None
        free, owner, name = self._found[id(call.parameter)]
        # As a table its rows are copied, and products read the copies.
        if is_lookup(call) and free.use.kind == "linear":
            return None
        if free.use != call.use:
            _refuse(free, f"as {call.use.kind} of {'x'.join(map(str, call.use.shape))}")
        layers = owner.layers_of(name)
        return call.compute([layers[i] for i in call.layers])

    def _call_computed(self, call: WeightCall, text: str) -> Any:
        made, layers = self._computed.get(text, (None, ()))
        if made is None or made.use != call.use:
            raise ModelError(_otherwise(self._names_of(call.parameter), f"as {call.use}"))
        return call.compute([layers[i] for i in call.layers])

    def _names_of(self, parameter: Tensor) -> str:
        value = self.constants.standing(parameter)
        names = {self.constants.names[id(parameter)]} if value is None else value.sources
        return ", ".join(sorted(names))

    def other(self, func: Any, blocks: Sequence[Block]) -> None:
        """See ``Recognising``."""
        for block in blocks:
            is_value = self.constants.standing(block.parameter) is not None
            if is_value or id(block.parameter) in self.constants.names:
                how = f"by {getattr(func, '__name__', func)}"
                raise ModelError(_otherwise(self._names_of(block.parameter), how))
            if id(block.parameter) not in self._tied:
                free = self._found[id(block.parameter)][0]
                _refuse(free, f"by {getattr(func, '__name__', func)}")


def _refuse(free: FreeWeight, how: str) -> None:
    shape = "x".join(map(str, free.use.shape))
    raise ModelError(
        f"parameter {free.name!r} is used {how} here, and as {free.use.kind} of {shape} on the "
        "data that the network was searched on; give data on which it is used in both ways: then "
        "it is left as it is"
    )


def _otherwise(names: str, how: str) -> str:
    return (
        f"{names}, from which a weight is computed, are used {how} here, and not so on the data "
        "that the network was searched on; give data on which they are used in both ways: then "
        "they are left as they are"
    )


def open_weights(root: nn.Module, uses: Mapping[Name, Use]) -> None:
    """Makes parameters layers, in place.

    Args:
        root: Our own copy of the model.
        uses: Module's path and parameter's name to how it is used.
    """
    if not uses:
        return
    by_owner: dict[str, dict[str, Use]] = {}
    for (path, name), use in uses.items():
        by_owner.setdefault(path, {})[name] = use
    modules = dict(root.named_modules())
    for path, wanted in by_owner.items():
        _open(path, modules[path], wanted)
    open_root(root)


def open_computed(root: nn.Module, computed: Iterable[ComputedUse]) -> None:
    """Makes weights that are computed layers, in place.

    Args:
        root: Our own copy of the model; what they are computed from is no parameter any more.
        computed: The weights.
    """
    modules = dict(root.named_modules())
    for each in computed:
        for name in each.sources:
            path, _, own = name.rpartition(".")
            _absorb(modules[path], own)
        path, own = each.name
        owner = _opened(modules[path])
        layer, _ = _layers(each.use, each.value)
        for part in layer.modules():
            vars(part)["computed"] = each.text
        owner._modules[own] = layer.train(owner.training)
        made = ComputedLayers(each.text, each.use, each.sources)
        vars(owner)["_computed"] = {**owner.computed, own: made}
    if modules[""] is root and any(isinstance(m, OpenWeights) for m in modules.values()):
        open_root(root)


def _absorb(owner: nn.Module, name: str) -> None:
    opened = _opened(owner)
    parameter = opened._parameters.pop(name, None)
    tensor = opened._buffers.pop(name) if parameter is None else parameter
    opened._non_persistent_buffers_set.discard(name)
    vars(opened)["_absorbed"] = {**opened.absorbed, name: tensor}


def _opened(owner: nn.Module) -> OpenWeights:
    if not isinstance(owner, OpenWeights):
        open_as(owner, OpenWeights, {}, {})
    assert isinstance(owner, OpenWeights)
    return owner


def open_root(root: nn.Module) -> None:
    """Makes calls of a network those in which functions call layers, in place."""
    if not isinstance(root, OpenWeights):
        open_as(root, OpenWeights, {}, {})
    vars(root)["_is_root"] = True


def opened_parts(root: nn.Module) -> list[nn.Module]:
    """The layers of all parameters that were opened."""
    owners = [module for module in root.modules() if isinstance(module, OpenWeights)]
    return [
        layer
        for owner in owners
        for name in (*owner._free, *owner.computed)
        for layer in owner.layers_of(name)
    ]


def uses_of(module: nn.Module, layers: Mapping[str, Use]) -> dict[Name, Use]:
    """Which parameters layers are of, by the layers' names; modules are none."""
    modules = dict(module.named_modules(remove_duplicate=False))
    found: dict[Name, Use] = {}
    for name, use in layers.items():
        outer, _, index = name.rpartition(".")
        for full in (name, outer) if index.isdigit() else (name,):
            path, _, own = full.rpartition(".")
            parameter = modules[path]._parameters.get(own) if path in modules else None
            if name not in modules and parameter is not None and use.parts(parameter):
                found[path, own] = use
    return found


def _open(path: str, owner: nn.Module, wanted: Mapping[str, Use]) -> None:
    layers: dict[str, nn.Module] = {}
    stored: dict[str, Any] = {}
    if isinstance(owner, OpenWeights):
        # Opened before, by another pass over the data.
        stored.update(owner._free)
    for name, use in wanted.items():
        parameter = owner._parameters[name]
        assert parameter is not None
        layers[name], count = _layers(use, parameter.detach())
        paths = [f"{name}.weight"] if count == 1 else [f"{name}.{i}.weight" for i in range(count)]
        full = dotted((path, name))
        stored[name] = FreeWeight(full, tuple(paths), tuple(parameter.shape), use, parameter)
    if isinstance(owner, OpenWeights):
        vars(owner)["_stored"] = stored
        for name, layer in layers.items():
            del owner._parameters[name]
            owner._modules[name] = layer.train(owner.training)
    else:
        open_as(owner, OpenWeights, layers, stored)


def _layers(use: Use, tensor: Tensor) -> tuple[nn.Module, int]:
    """A layer, or a list of several, and how many."""
    made = [layer_of(use.kind, nn.Parameter(part, False)) for part in use.cut(tensor)]
    for layer in made:
        # For the trace: a square matrix does not show it.
        vars(layer)["is_transposed"] = use.is_transposed
    return made[0] if len(made) == 1 else nn.ModuleList(made), len(made)


def layer_of(kind: str, weight: nn.Parameter) -> nn.Module:
    """A layer without a bias, which stays where it is and is added behind the layer."""
    if kind == "linear":
        return linear(weight)
    layer: nn.Module
    # On meta nothing is initialised: neither time nor random numbers of the user's are spent.
    if kind == "embedding":
        layer = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    else:
        made: Any = _CONVOLUTIONS[kind]
        outputs, inputs, *kernel = weight.shape
        if kind.startswith("conv_transpose"):
            outputs, inputs = inputs, outputs
        layer = made(inputs, outputs, tuple(kernel), bias=False, device="meta")
    layer.weight = weight
    return layer
