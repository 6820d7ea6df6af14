"""What a network takes in the files of a deployment target."""

from torch import nn

from mpq.backends.file_size import file_size_of
from mpq.backends.target import Target
from mpq.errors import InputError, MissingDependencyError
from mpq.hardware_profiles import FilePrices
from mpq.hardware_profiles.linear import StoredBits
from mpq.network.layer import Layer
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL, Precision


def bits_there(model: nn.Module, target: Target) -> StoredBits:
    """Bits of a weight in the target's file; what it cannot hold stays there as it came."""
    modules = dict(model.named_modules(remove_duplicate=False))

    def stored_bits(layer: Layer, precision: Precision) -> int:
        if target.why_not(layer, precision, modules):
            return layer.num_weights * layer.original_bits
        return target.stored_bits(layer, precision)

    return stored_bits


def file_prices(model: nn.Module, network: Network, target: Target) -> FilePrices | str:
    """Bytes of the target's files; or why it does not say, for whoever asks."""
    try:
        names = [layer.name for layer in network.layers]
        size = file_size_of(target, model, network.module, names)
    except (InputError, MissingDependencyError) as error:
        return str(error)
    modules = dict(model.named_modules(remove_duplicate=False))

    def layer_bytes(layer: Layer, precision: Precision) -> int:
        stays = bool(target.why_not(layer, precision, modules))
        return size.layer_bytes(layer, ORIGINAL if stays else precision)

    return FilePrices(size.constant_bytes, layer_bytes)


def constant_bytes(network: Network, target: Target) -> int:
    """What the target stores besides the layers' weights, which may take other bytes there."""
    # By identity: a parameter with two names is stored once.
    others = {id(t): t for t in network.unquantized}
    more = (target.constant_bytes(t) - t.numel() * t.element_size() for t in others.values())
    return network.constant_bytes + sum(more)
