"""How large a target's files are going to be, asked before anything is written."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from torch import nn

from mpq.backends.target import LayerShape, Shipped, Target
from mpq.errors import InputError
from mpq.network.layer import CACHES, WEIGHTLESS
from mpq.network.modules import stored_tensors, weight_of
from mpq.quantization.cache_bits import cache_file_bytes
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True)
class FileSize:
    """Bytes of the files that count as weights: what no precision changes, and every layer's.

    Args:
        constant_bytes: Headers, vocabulary, paddings, and tensors that are no layer's weight.
        layer_bytes: Of a layer that stores its weight itself, at a precision that the target holds
            or as it came: its tensors, and all that the file has because of them.
        slack_bytes: The files are never larger than the sum, and smaller by no more than this.
    """

    constant_bytes: int
    layer_bytes: Callable[[LayerShape, Precision], int]
    slack_bytes: int = 0


@runtime_checkable
class SaysFileSize(Protocol):
    """A ``Target`` whose files are a sum over layers, and something that no precision changes."""

    def file_size(self, model: nn.Module, module: nn.Module, names: Collection[str]) -> FileSize:
        """Bytes of its files, headers included; nothing is rounded and nothing is written.

        Args:
            model: The user's own, in its own dtype.
            module: A copy of it, opened and folded as when it is searched.
            names: Of the layers whose weights ``FileSize.layer_bytes`` counts.

        Raises:
            MissingDependencyError: If a package that writes the file is missing.
        """


def file_size_of(
    target: Target, model: nn.Module, module: nn.Module, names: Collection[str]
) -> FileSize:
    """What a target says; arguments as in ``SaysFileSize.file_size``.

    Raises:
        InputError: If it does not say, as where a graph is in the file.
        MissingDependencyError: If a package that writes the file is missing.
    """
    if not isinstance(target, SaysFileSize):
        raise InputError(
            f"the target {target.name} does not say how large its file is before it is written: "
            "its graph is in there, too, and depends on the precisions; limit weight_bytes instead"
        )
    return target.file_size(model, module, names)


def promised(target: Target, shipped: Shipped) -> FileSize | None:
    """The size of what is going to be written, all in the constant; ``None``: it is not known.

    Args:
        target: What writes it.
        shipped: What is written.
    """
    if not isinstance(target, SaysFileSize):
        return None
    layers = [x for x in shipped.assignment.layers if x.kind not in WEIGHTLESS]
    caches = (x for x in shipped.assignment.layers if x.kind in CACHES)
    size = target.file_size(shipped.model, shipped.module, [x.name for x in layers])
    found: dict[object, int] = {}
    for layer in layers:
        weight = weight_of(shipped.module.get_submodule(layer.name))
        # One parameter in two precisions, as it came and quantized, lies in the file twice.
        key = id(weight), layer.precision.weight
        found.setdefault(key, size.layer_bytes(layer, layer.precision))
    total = size.constant_bytes + sum(found.values())
    total += sum(cache_file_bytes(x.name, x.precision) for x in caches)
    return FileSize(total, size.layer_bytes, size.slack_bytes)


def tensor_sizes(target: Target, module: nn.Module, names: Collection[str]) -> FileSize:
    """The size of files that have tensors and nothing else.

    Args:
        target: Says what a tensor takes.
        module: The network, opened and folded.
        names: Of the layers.
    """
    own = {id(weight_of(module.get_submodule(name))) for name in names}
    rest = {id(t): t for t in stored_tensors(module) if id(t) not in own}

    def layer_bytes(layer: LayerShape, precision: Precision) -> int:
        if precision.weight.is_exact:
            return target.constant_bytes(weight_of(module.get_submodule(layer.name)))
        return -(-target.stored_bits(layer, precision) // 8)

    return FileSize(sum(map(target.constant_bytes, rest.values())), layer_bytes)
