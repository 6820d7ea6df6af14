"""A network in its assigned formats whose codes, scales, biases and norms can be moved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, final

import torch
from torch import Tensor, nn

from mpq.backends.simulate import prepared, quantizer_of, transformed, with_precisions
from mpq.network.modules import share_parameters, weight_of
from mpq.network.same_start import begin_alike
from mpq.network.weight_layout import layout_of
from mpq.problem.assignment import Assignment
from mpq.quantization.stored import StoredWeights
from mpq.tuning._base import Tuning
from mpq.tuning.tuned_vector import TunedVector, tuned_parameters, tuned_vectors
from mpq.tuning.tuned_weight import TunedWeight, why_no_scale

Part: TypeAlias = TunedWeight | TunedVector


@final
@dataclass(frozen=True, eq=False)
class Student:
    """A quantized network, and what of it is tuned.

    Args:
        module: Own copy of the network in its assigned formats.
        assignment: Its formats, and what they were rounded to at first.
        weights: One for every weight that is tuned.
        vectors: Biases and norms that are tuned.
        own: The model that the vectors are of.
        left: Layer or vector to why it is not tuned.
        still: Layers of integer or other formats whose codes stay where codes are tuned, and why.
    """

    module: nn.Module
    assignment: Assignment
    weights: tuple[TunedWeight, ...]
    vectors: tuple[TunedVector, ...]
    own: nn.Module
    left: dict[str, str]
    still: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, assignment: Assignment, tuning: Tuning) -> Self:
        """The network as ``mpq.quantize`` makes it; the given one stays as it is.

        Takes the memory of one more copy of what is tuned, and where codes are tuned of some eight
        in float32.

        Raises:
            MismatchError: If the assignment belongs to another network.
        """
        changed, rest = transformed(model, assignment)
        own = share_parameters(changed)
        module, quantizer = prepared(own, rest), quantizer_of(rest)
        # Before rounded weights take their places.
        vectors, apart = tuned_vectors(module, own, list(rest.precisions), rest.folded)
        left = {
            layer.name: why
            for layer in rest.layers
            if (why := why_no_scale(layer.precision.weight))
        }
        groups: dict[tuple[int, Any], list[str]] = {}
        for layer in rest.layers:
            if layer.name not in left:
                key = (id(module.get_submodule(layer.name).weight), layer.precision.weight)
                groups.setdefault(key, []).append(layer.name)
        made = []
        for (_, tensor_format), names in groups.items():
            first = module.get_submodule(names[0])
            rows = layout_of(first).to_rows(weight_of(first).detach()).float().cpu()
            made.append((names, rows, quantizer.codes(names[0], first, tensor_format)))
        module = begin_alike(
            with_precisions(module, rest, quantizer), rest.metadata.allow_randomness
        )
        weights = tuple(
            TunedWeight(
                names, [module.get_submodule(name) for name in names], rows, codes, rest.numerics,
                tuning.moves_codes,
            )
            for names, rows, codes in made
        )  # fmt: skip
        still = {
            name: f"codes of {weight.format.number.name} are not evenly spaced"
            for weight in weights
            for name in weight.names
            if tuning.moves_codes and weight.latent is None
        }
        left |= apart
        return cls(module, assignment, weights, tuple(vectors), own, left, still)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that is tuned, in one order."""
        return (*self.weights, *self.vectors)

    def fill(self) -> None:
        """Makes the network compute with what is tuned, as it is now."""
        for part in self.parts:
            part.fill()

    def tensors(self) -> dict[str, Tensor]:
        """All that a run that goes on needs; the very objects."""
        return {
            f"{place} {name}": tensor
            for place, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }

    def tuned(self) -> Assignment:
        """The assignment with what is tuned, as it is now."""
        before = self.assignment.weights
        known = {} if before is None else dict(before.by_layer)
        for weight in self.weights:
            known |= dict.fromkeys(weight.names, weight.stored())
        rounding = "nearest" if before is None else before.rounding
        stored = StoredWeights(rounding, known) if known else None
        vectors = tuned_parameters(self.vectors, self.own, self.assignment.tuned)
        return replace(self.assignment, weights=stored, tuned=vectors)


def require_gradients(parts: Sequence[Part], module: nn.Module) -> None:
    """From now on passes of the network give gradients of these parts alone."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for part in parts:
        for leaf in part.leaves:
            leaf.requires_grad_(True)


@torch.no_grad()
def restored(student: Student, kept: dict[str, Tensor]) -> None:
    """Puts kept numbers back, and makes the network compute with them."""
    for name, tensor in student.tensors().items():
        tensor.copy_(kept[name])
    student.fill()
