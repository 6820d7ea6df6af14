"""Which of a model's tensors went into the computed weights of our own copy."""

from collections.abc import Iterator

from torch import Tensor, nn

from mpq.network.computed_weights import sources_of
from mpq.network.modules import weight_of
from mpq.network.open_weights import OpenWeights
from mpq.network.opened import Opened
from mpq.network.wrappers import plain_modules


def held_by(model: nn.Module, module: nn.Module) -> dict[int, list[Tensor]]:
    """What holds the values of weights that are computed from others.

    Args:
        model: The user's.
        module: Our own copy of it, opened.

    Returns:
        For every tensor of the model, by identity, that a weight is computed from: the parameters
        of the copy that hold this weight, or a part of it.
    """
    found: dict[int, list[Tensor]] = {}
    plain = dict(plain_modules(model))
    owners = [each for each in module.modules() if isinstance(each, OpenWeights)]
    for opened in owners:
        for own, made in opened.computed.items():
            weights = [weight_of(part) for part in opened.layers_of(own)]
            found |= {key: list(weights) for key in _tensors(plain, made.sources)}
    for path, each in plain.items():
        for name, sources in sources_of(each).items():
            parts = _parts(module.get_submodule(path), name)
            for source in sources if parts else ():
                found[id(source)] = parts
    return found


def _tensors(plain: dict[str, nn.Module], names: tuple[str, ...]) -> Iterator[int]:
    """Of parameters and buffers by name; of one that is itself computed, what it is from."""
    for name in names:
        path, _, own = name.rpartition(".")
        owner = plain[path]
        tensor = owner._parameters.get(own, owner._buffers.get(own))
        yield from map(id, sources_of(owner).get(own, []) if tensor is None else [tensor])


def _parts(owner: nn.Module, name: str) -> list[Tensor]:
    stored = owner._stored.get(name) if isinstance(owner, Opened) else None
    if stored is not None:
        return [owner.get_parameter(path) for path in stored.parts]
    # What has another value every time is computed still.
    parameter = owner._parameters.get(name)
    return [] if parameter is None else [parameter]
