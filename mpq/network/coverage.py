"""What of a model's parameters and buffers lies in layers, and what does not: named and counted."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self, final

from torch import Tensor, nn

from mpq.network.memory import Counted, Span, elements_inside, span_of
from mpq.network.refusals import is_observer
from mpq.network.wrappers import plain_modules

_SHOWN: Final = 8
"""Names in a sentence; all of them are in the record."""
_LARGEST: Final = 3
"""Names in an error."""
_COMPLEX: Final = "complex, while formats hold real numbers"
_OBSERVED: Final = "what an observer has seen, which a conversion takes away"
_LARGE: Final = 0.01
"""Share of the checkpoint from which a bias, norm or buffer is named: tables and masks are more."""


@final
@dataclass(frozen=True)
class Uncovered:
    """A parameter or buffer that belongs to no quantizable layer: it stays as it is.

    Args:
        name: As in ``model.named_parameters()`` or ``.named_buffers()``.
        num_elements: Numbers in it that no layer holds.
        num_bytes: Their size in the model's own dtype.
        is_weight: Whether it is a parameter with two axes or more, as weights are, or read as one;
            others are biases, norms and statistics.
        is_stored: Whether a checkpoint has it; what a module computes for itself is not stored.
        is_left_out: Whether it is in a layer that the user left out (include, exclude).
        is_folded: Whether it is a BatchNorm's that is folded into the layer before it, so that
            ``weight_bytes`` has the bias that it becomes in its place.
        reason: Of a weight: what keeps it from being a layer, where that is known. Of a buffer:
            that it is an observer's.
    """

    name: str
    num_elements: int
    num_bytes: int
    is_weight: bool
    is_stored: bool = True
    is_left_out: bool = False
    is_folded: bool = False
    reason: str = ""


@final
@dataclass(frozen=True)
class Coverage:
    """All parameters and buffers of a model: those of quantizable layers, and the others by name.

    Args:
        num_elements: Numbers in all parameters and buffers; memory that two share once.
        num_bytes: Size of what a checkpoint has of them, in the model's own dtypes.
        covered_elements: Numbers that are weights of layers.
        covered_bytes: Their size.
        outside: Everything else; its elements and the covered ones are all there are.
        constant_bytes: Size of what the quantized network stores besides the layers' weights, as
            ``Network.constant_bytes`` counts it; ``None`` in older records.
    """

    num_elements: int
    num_bytes: int
    covered_elements: int
    covered_bytes: int
    outside: tuple[Uncovered, ...]
    constant_bytes: int | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        weights: Iterable[Tensor],
        left_out: Iterable[Tensor] = (),
        constant_bytes: int | None = None,
        held: Mapping[int, Sequence[Tensor]] = MappingProxyType({}),
        matrices: Collection[str] = (),
        folded: Collection[str] = (),
        reasons: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Matches weights with the model's tensors by their memory.

        Args:
            model: The user's model.
            weights: Of layers, before anything is folded: views of the model's memory, or of what
                was computed from it.
            left_out: Weights of layers that the user left out.
            constant_bytes: See the class.
            held: The model's tensors, by identity, that others were computed from: these.
            matrices: Names of vectors that functions read as matrices.
            folded: Names of the BatchNorms that are folded.
            reasons: Names of parameters that functions read, and why they are no layers.
        """
        spans = [span_of(weight) for weight in weights]
        others = [span_of(weight) for weight in left_out]
        counted = Counted()
        elements = size = covered = covered_bytes = 0
        outside = []
        # What is stored first, as it may be a view of what is not.
        tensors = sorted(_tensors(model), key=lambda x: not x[3])
        for name, tensor, is_parameter, is_stored, is_observed in tensors:
            if not counted.is_new(tensor):
                continue
            inside = _held_inside(tensor, held, spans)
            left = tensor.numel() - inside
            elements += tensor.numel()
            size += tensor.numel() * tensor.element_size() * is_stored
            covered += inside
            covered_bytes += inside * tensor.element_size()
            if left:
                is_weight = is_parameter and (tensor.ndim > 1 or name in matrices)
                num_bytes = left * tensor.element_size()
                is_left_out = is_weight and _held_inside(tensor, held, others) > 0
                is_folded = name.rpartition(".")[0] in folded
                why = _COMPLEX if tensor.is_complex() else reasons.get(name, "")
                why = why if is_weight and not is_left_out else _OBSERVED if is_observed else ""
                outside.append(
                    Uncovered(
                        name, left, num_bytes, is_weight, is_stored, is_left_out, is_folded, why
                    )
                )  # fmt: skip
        return cls(elements, size, covered, covered_bytes, tuple(outside), constant_bytes)

    @property
    def weights_outside(self) -> tuple[Uncovered, ...]:
        """Parameters of two axes or more, or read so, that no layer could hold, largest first."""
        found = (item for item in self.outside if item.is_weight and not item.is_left_out)
        return tuple(sorted(found, key=lambda item: -item.num_bytes))

    @property
    def weight_bytes_outside(self) -> int:
        """Their size; ``weight_bytes`` counts it, as it counts all that is stored."""
        return sum(item.num_bytes for item in self.weights_outside)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What stays as it is, for people."""
        if not self.num_bytes:
            return ()
        others = [x for x in self.outside if not x.is_weight and x.is_stored]
        observed = [x for x in others if x.reason == _OBSERVED]
        others = [x for x in others if x not in observed]
        large = [x for x in others if x.num_bytes > _LARGE * self.num_bytes and not x.is_folded]
        small = _bytes(others) - _bytes(large)
        left_out = [x for x in self.outside if x.is_left_out]
        computed = [x.name for x in self.outside if not x.is_stored]
        found = [
            f"layers hold {self._share(self.covered_bytes)} of the checkpoint's {self.num_bytes:,} "
            f"bytes; biases, norms and statistics {self._share(small)}"
        ]
        kinds = {
            "outside all layers, not quantized and": self.weights_outside,
            "left out as asked,": left_out,
            "statistics of observers, which a conversion takes away,": observed,
            "buffers and vectors of more than 1 % each, not quantized and": large,
        }
        found += [
            f"{kind} counted in weight_bytes as they are: {self._named(items)}"
            for kind, items in kinds.items()
            if items
        ]
        if self.constant_bytes is not None:
            found.append(self._constant(self.constant_bytes))
        if computed:
            found.append(f"computed by the model and not stored: {_listed(computed)}")
        told = [
            f"{x.name} ({x.num_elements:,} weights) is {x.reason}"
            for x in self.weights_outside
            if x.reason
        ]
        if told:
            found.append(f"why they are no layers: {_listed(told)}")
        return tuple(found)

    @property
    def largest_outside(self) -> str:
        """What takes most of the bytes that no precision changes, with its size, for people.

        Empty where all of it is small: biases, and norms that are folded.
        """
        stored = (x for x in self.outside if x.is_stored and not x.is_folded)
        large = [x for x in stored if x.is_weight or x.num_bytes > _LARGE * self.num_bytes]
        found = sorted(large, key=lambda x: -x.num_bytes)[:_LARGEST]
        return ", ".join(f"{x.name} ({x.num_bytes:,} bytes)" for x in found)

    def _named(self, items: Sequence[Uncovered]) -> str:
        """The largest with their shares, and the share of all."""
        items = sorted(items, key=lambda x: -x.num_bytes)
        names = _listed([f"{x.name} ({self._share(x.num_bytes)})" for x in items])
        return f"{names}, together {self._share(_bytes(items))}"

    def _constant(self, num_bytes: int) -> str:
        stored = _bytes(x for x in self.outside if x.is_stored)
        told = f"weight_bytes has {num_bytes:,} bytes besides the layers' weights"
        if num_bytes < stored:
            told += (
                f", {stored:,} in the checkpoint, where what is folded into layers (BatchNorm), or "
                "what their weights are computed from, still stands apart"
            )
        elif num_bytes > stored:
            told += f", {stored:,} in the checkpoint, where a layer shares its weight with the rest"
        return told

    def _share(self, num_bytes: int) -> str:
        return f"{100 * num_bytes / self.num_bytes:.1f} %"


def _bytes(items: Iterable[Uncovered]) -> int:
    return sum(item.num_bytes for item in items)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor, bool, bool, bool]]:
    """Name, tensor, whether it is a parameter, is in a checkpoint, is what an observer has seen."""
    # Names without wrappers, as layers have them.
    for name, module in plain_modules(model):
        prefix = f"{name}." if name else ""
        for own, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + own, parameter, True, True, False
        for own, buffer in module._buffers.items():
            if buffer is not None:
                is_stored = own not in module._non_persistent_buffers_set
                yield prefix + own, buffer, False, is_stored, is_observer(module)


def _held_inside(
    tensor: Tensor, held: Mapping[int, Sequence[Tensor]], spans: Sequence[Span]
) -> int:
    """Elements in the spans; of what weights are computed from, the share of them that is."""
    parts = held.get(id(tensor))
    if parts is None:
        return elements_inside(tensor, spans)
    whole = sum(part.numel() for part in parts)
    return tensor.numel() * sum(elements_inside(part, spans) for part in parts) // max(whole, 1)
