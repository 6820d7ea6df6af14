"""Two networks layer by layer, each layer on the very numbers that it read in the other one.

Where inputs are rounded while running, or the last digits of sums grow, two right networks part
anywhere: what came to a layer from elsewhere is not its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mpq.backends.layerwise import (
    INPUT,
    OUTPUT,
    difference,
    first_output,
    in_shape,
    is_apart,
    layer_of,
)
from mpq.problem.assignment import Assignment

CODES: Final = 2.0
"""How many codes of one input may fall to the other side of a tie at every position."""
BITS: Final = 8
"""To which llama.cpp rounds the inputs of layers that an assignment leaves in floating point."""

Judge = Callable[[str, nn.Module, Tensor, Tensor, Tensor], str]
"""Is given a layer's name, the layer, what it read, what it should make of that, and what it made.

Says how far the last two are apart, for people; nothing where they are near enough.
"""


@final
@dataclass(frozen=True)
class LookedAt:
    """What became of a comparison layer by layer.

    Args:
        named: The first layer that makes something else of what it reads, for people; empty: none.
        seen: Names of the layers of which a call could be compared.
    """

    named: str
    seen: frozenset[str]


@final
@dataclass(frozen=True)
class InputCodes:
    """How far apart the codes of a layer's input lie.

    Args:
        relative: Of the largest number.
        reach: The largest number of a range that is known beforehand; 0: of none.
    """

    relative: float
    reach: float

    def step(self, read: Tensor) -> float:
        """Between two codes of a tensor, at most."""
        return self.relative * max(self.reach, float(read.abs().max()))


def codes_of(assignment: Assignment) -> dict[str, InputCodes]:
    """By the names of the layers whose inputs are rounded while running."""
    found = {}
    for layer in assignment.layers:
        number, span = layer.precision.activation.number, layer.activation_range
        bits = number.mantissa_bits + 1 if number.is_float else number.bits
        if layer.precision.activation.is_exact:
            bits = BITS if assignment.numerics.float_inputs != "float" else 0
        if bits and layer.kind != "embedding":
            reach = max(abs(span.low), abs(span.high)) if span else 0.0
            found[layer.name] = InputCodes(2.0 ** (1 - bits), reach)
    return found


def by_worst(tolerance: float) -> Judge:
    """Judges by the number that is furthest off.

    Args:
        tolerance: Accepted difference, in standard deviations of what a layer gives.
    """

    def judge(_: str, __: nn.Module, ___: Tensor, expected: Tensor, made: Tensor) -> str:
        return difference(expected, made) if is_apart(expected, made, tolerance, 0.0) else ""

    return judge


def by_channels(tolerance: float, codes: Mapping[str, InputCodes]) -> Judge:
    """Judges by each output channel's median difference over positions and examples.

    An input that falls to the other side of a tie moves all channels of one position by a code
    times a weight; a parameter that is wrong moves one channel at all positions.

    Args:
        tolerance: As in ``by_worst``.
        codes: Of inputs that are rounded. ``CODES`` of them times a channel's largest weight are
            accepted besides, as there may be a single position.
    """

    def judge(name: str, part: nn.Module, read: Tensor, expected: Tensor, made: Tensor) -> str:
        if expected.shape != made.shape:
            return difference(expected, made)
        rows = (expected - made).abs().movedim(_channel_axis(part, expected), 0)
        if not rows.numel():
            return ""
        medians = rows.flatten(1).median(1).values if rows.ndim > 1 else rows
        step = codes[name].step(read) if name in codes else 0.0
        largest = float(_weight(part).abs().max())
        accepted = tolerance * _spread(expected) + CODES * step * largest
        worst = float(medians.max())
        # A comparison with nan is false.
        return "" if worst <= accepted else f"{worst:.3g} in the median of a channel"

    return judge


@torch.no_grad()
def any_apart(
    module: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], judge: Judge
) -> LookedAt:
    """Looks at all that has a weight and makes its output of one tensor, norms as well.

    Calls are left out of which one end is not told, or has another shape than here (some runtimes
    have channels last). Of an embedding, which reads ids, the output is compared as it is.

    Args:
        module: The network. Layers that round their inputs read the very numbers of ``found``.
        expected: ``traced`` of it; the order counts.
        found: That of another network.
        judge: ``by_worst`` or ``by_channels``.
    """
    parts, seen, named = dict(module.named_modules()), set[str](), ""
    for key, given in expected.items():
        call = key.removeprefix(OUTPUT)
        name, made = layer_of(call), found.get(key)
        part = parts.get(name)
        if call == key or made is None or not isinstance(getattr(part, "weight", None), Tensor):
            continue
        assert part is not None
        ends = _read(part, expected.get(INPUT + call), found.get(INPUT + call), given)
        if ends is None:
            continue
        read, wanted = ends
        seen.add(name)
        apart = judge(name, part, read, wanted, in_shape(made, wanted))
        if apart and not named:
            named = (
                f"the first layer that makes something else of what it reads is {call!r}, by "
                f"{apart} (standard deviation {_spread(wanted):.3g})"
            )
    return LookedAt(named, frozenset(seen))


SAME: Final = 1e-4
"""Standard deviations, within which a layer makes again what it has made here."""


def _read(
    part: nn.Module, here: Tensor | None, there: Tensor | None, given: Tensor
) -> tuple[Tensor, Tensor] | None:
    """What a layer read in the other network, and should make of it; ``None``: not known."""
    if type(part) is nn.Embedding and here is None:  # a subclass may scale what it looks up
        return given, given
    if here is None or there is None:
        return None
    there = in_shape(there, here)
    if there.shape != here.shape or not _reads_one(part):
        return None
    # A gated norm reads more: it is none that makes its output of its input.
    again = _made(part, here)
    made = None if again is None or is_apart(given, again, SAME, 0.0) else _made(part, there)
    return None if made is None else (there, made)


def _reads_one(part: nn.Module) -> bool:
    """Whether a module can be called with one tensor."""
    wanted = [
        x for x in signature(part.forward).parameters.values() if x.default is Parameter.empty
    ]
    named = [x for x in wanted if x.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    return len(named) <= 1


def _made(part: nn.Module, read: Tensor) -> Tensor | None:
    made = first_output(part(read.to(_weight(part))))
    return None if made is None else made.float().cpu()


def _weight(part: nn.Module) -> Tensor:
    weight = part.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _channel_axis(part: nn.Module, output: Tensor) -> int:
    if isinstance(part, _ConvNd):
        return output.ndim + 1 - _weight(part).ndim
    return 1 if isinstance(part, _BatchNorm | nn.GroupNorm) and output.ndim > 1 else -1


def _spread(output: Tensor) -> float:
    return float(output.std()) if output.numel() > 1 else float(output.abs().sum())
