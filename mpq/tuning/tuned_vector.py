"""Biases and norms that are tuned, and what they are called in the user's model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn

from mpq.network.tracing import kind_of
from mpq.network.tuned_parameters import TunedParameter, TunedParameters

NO_VECTOR: Final = (
    "the model as it came has no such vector (it is computed, or of a BatchNorm without a bias)"
)
LEFT_OUT: Final = "its layer was left out of the search"


@final
@dataclass(frozen=True)
class Place:
    """Where a vector lies in the user's model.

    Args:
        parameter: Name of the vector that it is a part of (a projection's bias in attention).
        start: Of its first entry there.
        length: Of it.
    """

    parameter: str
    start: int
    length: int


@final
class TunedVector:
    r"""One bias, or one norm's weight, as it is tuned.

    .. math:: v = v_0 + r \, t, \qquad r = \lVert v_0 \rVert_2 / \sqrt{n}

    Args:
        place: Where it lies in the user's model.
        original: ``[n]`` its numbers there.
        leaves: Parameters of the quantized network that hold it; a bias with a folded BatchNorm
            holds the BatchNorm's, and other numbers beside it.
    """

    def __init__(self, place: Place, original: Tensor, leaves: Sequence[nn.Parameter]) -> None:
        self.place, self.leaves = place, list(leaves)
        self._original = original.detach().clone()
        wide = torch.promote_types(original.dtype, torch.float32)
        self._starts = [leaf.detach().to(wide).clone() for leaf in leaves]
        length = float(self._original.double().square().mean().sqrt())
        # Where all are 0 nothing says how large they may be; activations are mostly of order 1.
        self._unit = length if length > 0 else 1.0
        self.moved = torch.zeros_like(self._starts[0], requires_grad=True)

    @torch.no_grad()
    def fill(self) -> None:
        """Puts the vector as it is now into the network."""
        for leaf, start in zip(self.leaves, self._starts, strict=True):
            leaf.copy_(start + self._unit * self.moved)

    @torch.no_grad()
    def move(self, by: Tensor) -> None:
        """Adds ``[n]`` to it, also in the network."""
        self.moved += by.to(self.moved) / self._unit
        self.fill()

    def backward(self) -> None:
        """The gradient from those that the network's parameters have; takes these."""
        gradient = torch.zeros_like(self.moved)
        for leaf in self.leaves:
            if leaf.grad is not None:
                gradient += self._unit * leaf.grad
            leaf.grad = None
        self.moved.grad = gradient if self.moved.grad is None else self.moved.grad + gradient

    def after_step(self) -> None:
        """Nothing is rounded."""

    def tensors(self) -> dict[str, Tensor]:
        """All that a run that goes on needs, by name."""
        return {"moved": self.moved.detach()}

    @torch.no_grad()
    def numbers(self) -> Tensor:
        """``[n]`` as it is now, in the user's model."""
        wide = self._original.to(self.moved.dtype) + self._unit * self.moved
        return wide.to(self._original.dtype)


def tuned_vectors(
    module: nn.Module, own: nn.Module, layers: Sequence[str], folded: Mapping[str, str]
) -> tuple[list[TunedVector], dict[str, str]]:
    """Vectors of a quantized network that are vectors of the user's model.

    They get memory of their own. A bias that a folded BatchNorm gave stands for the BatchNorm's.

    Args:
        module: The quantized network, whose parameters share the memory of ``own``'s.
        own: The user's model without wrappers (``share_parameters``).
        layers: Those that the assignment speaks of; others, which were left out, stay as they are.
        folded: Convolution to the BatchNorm that was folded into it.

    Returns:
        The vectors, and names of others in the quantized network to why they are not tuned.
    """
    norms = {f"{layer}.bias": f"{norm}.bias" for layer, norm in folded.items()}
    held = dict(own.named_parameters())
    found: dict[Place, list[nn.Parameter]] = {}
    left = {}
    assigned = {id(module.get_submodule(name)) for name in layers}
    for name, parameter in module.named_parameters():
        if parameter.ndim != 1 or not parameter.is_floating_point():
            continue
        owner = module.get_submodule(name.rpartition(".")[0])
        if kind_of(owner) is not None and id(owner) not in assigned:
            left[name] = LEFT_OUT
            continue
        norm = norms.get(name)
        place = _place(parameter, held) if norm is None else _whole(norm, held)
        if place is None:
            left[name] = NO_VECTOR
        else:
            found.setdefault(place, []).append(parameter)
    vectors = []
    for place, leaves in found.items():
        for leaf in leaves:
            leaf.data = leaf.data.clone()
        vectors.append(TunedVector(place, _part(held[place.parameter], place), leaves))
    return vectors, left


def _whole(name: str, held: Mapping[str, nn.Parameter]) -> Place | None:
    return Place(name, 0, len(held[name])) if name in held else None


def _place(parameter: nn.Parameter, held: Mapping[str, nn.Parameter]) -> Place | None:
    """The part of a vector whose memory it is."""
    size, first = parameter.element_size(), parameter.data_ptr()
    for name, other in held.items():
        start = first - other.data_ptr()
        is_inside = 0 <= start <= (other.numel() - parameter.numel()) * size
        is_alike = other.ndim == 1 and other.dtype == parameter.dtype
        if is_alike and is_inside and other.is_contiguous() and parameter.is_contiguous():
            return Place(name, start // size, parameter.numel())
    return None


def _part(vector: Tensor, place: Place) -> Tensor:
    return vector.detach()[place.start : place.start + place.length]


def tuned_parameters(
    vectors: Sequence[TunedVector], own: nn.Module, before: TunedParameters | None
) -> TunedParameters | None:
    """What tuning changed in a model, as an assignment keeps it; ``None``: nothing.

    Args:
        vectors: As they are now.
        own: The model that they are vectors of.
        before: What an earlier tuning had changed in it already.
    """
    held = dict(own.named_parameters())
    known = {} if before is None else dict(before.by_name)
    for name, moved in _by_parameter(vectors):
        original, tuned = (_wide(held[name].detach()) for _ in range(2))
        for vector in moved:
            _part(tuned, vector.place).copy_(_wide(vector.numbers()))
        if not torch.equal(original, tuned):
            first = known[name].original if name in known else original.numpy()
            known[name] = TunedParameter(first, tuned.numpy())
    return TunedParameters(known) if known else None


def _by_parameter(vectors: Sequence[TunedVector]) -> Iterator[tuple[str, list[TunedVector]]]:
    for name in dict.fromkeys(vector.place.parameter for vector in vectors):
        yield name, [vector for vector in vectors if vector.place.parameter == name]


def _wide(values: Tensor) -> Tensor:
    """A copy on the CPU in the dtype that files have."""
    return values.to("cpu", torch.promote_types(values.dtype, torch.float32), copy=True)
