"""Weights that functions compute from parameters and buffers, and where their layers lie."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from torch import Tensor, nn

from mpq.errors import MismatchError
from mpq.network.expressions import check_sizes, evaluate, sources_in
from mpq.network.opened import Opened
from mpq.network.weight_use import Use

Name = tuple[str, str]
"""Path of a module, and name of one of its own parameters."""
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterDict, Opened)
"""Modules that do not take a child of another name."""


@final
@dataclass(frozen=True, eq=False)
class ComputedUse:
    """A weight that is computed from sources alone, which nothing else reads.

    Args:
        name: Where its layers are: in the place of the source that is as large, or a name anew.
        use: How it is cut into layers.
        text: How it is computed; see ``expressions``.
        value: What comes out.
    """

    name: Name
    use: Use
    text: str
    value: Tensor

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the parameters and buffers, each once."""
        return tuple(dict.fromkeys(sources_in(json.loads(self.text))))


def dotted(name: Name) -> str:
    """A name in one word."""
    return ".".join(filter(None, name))


def place_of(
    module: nn.Module, call: Any, sources: Mapping[str, Tensor], value: Tensor, taken: set[Name]
) -> Name:
    """Where a computed weight's layers go.

    Args:
        module: Our own copy of the model.
        call: How the weight is computed.
        sources: Name to parameter or buffer.
        value: What comes out.
        taken: Names of others.
    """
    names = list(dict.fromkeys(sources_in(call)))
    # As LoRA's matrix, of which the product is a correction, or a masked one.
    for name in names:
        path, _, own = name.rpartition(".")
        is_parameter = isinstance(sources[name], nn.Parameter)
        if is_parameter and sources[name].numel() == value.numel() and (path, own) not in taken:
            return path, own
    paths = [name.rpartition(".")[0].split(".") for name in names]
    common = ".".join(_common(paths))
    owner = module.get_submodule(common)
    path = ".".join(paths[0]) if isinstance(owner, _CONTAINERS) else common
    owner, own, number = module.get_submodule(path), "computed", 0
    while hasattr(owner, own) or (path, own) in taken:
        number += 1
        own = f"computed_{number}"
    return path, own


def _common(paths: Iterable[list[str]]) -> list[str]:
    first, *others = paths
    for place in range(len(first)):
        if any(other[: place + 1] != first[: place + 1] for other in others):
            return first[:place]
    return first


def assigned_uses(
    module: nn.Module, layers: Iterable[tuple[str, Use, str]]
) -> dict[str, ComputedUse]:
    """The computed weights of an assignment's layers, by their expressions.

    Args:
        module: Our own copy of the model.
        layers: Name, use and expression of each layer whose weight is computed.

    Raises:
        MismatchError: If the network lacks what one is computed from, or computes another shape.
    """
    found: dict[str, ComputedUse] = {}
    for layer, use, text in layers:
        if text not in found:
            found[text] = _assigned(module, layer, use, text)
    return found


def _assigned(module: nn.Module, layer: str, use: Use, text: str) -> ComputedUse:
    def source(name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        owner = module.get_submodule(path)
        tensor = owner._parameters.get(own, owner._buffers.get(own))
        if tensor is None:
            raise AttributeError(f"no parameter or buffer {name!r}")
        return tensor.detach()

    try:
        expression = json.loads(text)
        check_sizes(expression, source)
        value = evaluate(expression, source)
    # Whatever another network, or a file that somebody has changed, may lead to.
    except (
        AttributeError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise MismatchError(
            f"the assignment belongs to another network: the weight of layer {layer!r} is computed "
            f"from others, and that fails here ({error})"
        ) from error
    parts = use.parts(value)
    name = layer if parts == 1 else layer.rpartition(".")[0]
    path, _, own = name.rpartition(".")
    if not parts or (own in module.get_submodule(path)._modules):
        raise MismatchError(
            f"the assignment belongs to another network: the weight of layer {layer!r} is computed "
            f"from others, and comes out as {list(value.shape)} here, which is no {use}"
        )
    return ComputedUse((path, own), use, text, value)
