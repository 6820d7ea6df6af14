"""How every tensor between a network's steps is stored: as the next layer reads it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mpq.backends.c.steps import Step, Steps
from mpq.backends.input_grid import input_grid
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.grid import Grid, integer_range
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import static_grid
from mpq.quantization.tensor_format import TensorFormat

CPU = torch.device("cpu")


@final
@dataclass(frozen=True)
class Form:
    """How a tensor is stored: unsigned codes, ``number = scale * (code - zero)``.

    Args:
        bits: Of a code; 32: signed numbers in units of the scale, of the network's output.
        scale: Of one code.
        zero: The code of 0.
    """

    bits: int
    scale: float
    zero: int = 0

    @classmethod
    def of(cls, grid: Grid) -> "Form":
        """A calibrated grid's."""
        lowest = integer_range(grid.number, grid.symmetric)[0]
        return cls(grid.number.bits, float(grid.scale), int(grid.zero_point) - lowest)

    def code(self, number: float) -> int:
        """The code of a number, cut to the codes that there are."""
        ends = (-(2**31), 2**31 - 1) if self.bits == 32 else (0, 2**self.bits - 1)
        steps = number / self.scale if abs(number) != torch.inf else number
        if abs(steps) >= 2**40:
            return ends[0] if steps < 0 else ends[1]
        return min(max(self.zero + round(steps), ends[0]), ends[1])


Grids = dict[str, Grid]
"""Name of a tensor to the grid that it is stored on; all but the network's output."""


def known_grids(steps: Steps, layers: Mapping[str, AssignedLayer]) -> Grids:
    """Grids that the assignment's ranges give: of what layers read, and what only moves there.

    Args:
        steps: Of the network.
        layers: Those of an assignment that was checked, by name.

    Raises:
        PrecisionError: If two layers read one tensor in different formats, or the assignment lacks
            a layer; names them.
    """
    refuse_left_out(steps, layers)
    found: Grids = {}
    of_layers: dict[str, tuple[Form, str]] = {}
    for step in steps.steps:
        if step.layer is None:
            continue
        grid = input_grid(layers[step.layer])
        name = step.reads[0]
        form, other = of_layers.setdefault(name, (Form.of(grid), step.layer))
        if form != Form.of(grid):
            raise PrecisionError(
                f"c: layers {other!r} and {step.layer!r} read one tensor in different formats, and "
                "it is stored once: tie them"
            )
        found[name] = grid
    # Backwards, as a cut of a maximum takes the format of what comes last.
    for step in reversed(steps.steps):
        name = step.reads[0]
        readers = steps.readers(name)
        behind = [found.get(reader.makes) for reader in readers]
        first = behind[0]
        if name in found or first is None or not all(reader.keeps_numbers for reader in readers):
            continue
        if all(grid is not None and Form.of(grid) == Form.of(first) for grid in behind):
            found[name] = first
    return found


def refuse_left_out(steps: Steps, names: Collection[str]) -> None:
    """Refuses a network with a layer in no precision.

    Args:
        steps: Of the network.
        names: Of the layers that have one.

    Raises:
        PrecisionError: If there is another layer; names it.
    """
    for step in steps.steps:
        if step.layer is not None and step.layer not in names:
            raise PrecisionError(
                f"c: layer {step.layer!r} is in no precision of the assignment, and there is no "
                "floating point to leave it in: search without leaving it out"
            )


def formats_of_others(
    steps: Steps, layers: Mapping[str, AssignedLayer], known: Grids
) -> dict[str, TensorFormat]:
    """Formats of tensors whose range has to be measured, as ``Lifetimes`` counts their bits.

    What no layer reads has the input format of the next layer that it reaches, or else of the one
    before it.
    """
    following: dict[str, str] = {}
    for step in reversed(steps.steps):
        # Walking backwards, the nearest reader comes last.
        behind = step.layer or following.get(step.makes)
        for name in step.reads:
            # What is added to a layer's sums is no input of the layer, but of what comes after it.
            is_added = step.layer is not None and name != step.reads[0]
            nearest = following.get(step.makes, step.layer) if is_added else behind
            if nearest is not None:
                following[name] = nearest
    preceding: dict[str, str] = {}
    for step in steps.steps:
        before = step.layer or next(filter(None, map(preceding.get, step.reads)), None)
        if before is not None:
            preceding[step.makes] = before
    names = [steps.reads, *(step.makes for step in steps.steps[:-1])]
    found = {}
    for name in names:
        nearest = following.get(name) or preceding.get(name)
        if name not in known and nearest is not None:
            found[name] = layers[nearest].precision.activation
    return found


def measured_grid(
    sample: Tensor, tensor_format: TensorFormat, ends: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Grid:
    """The grid of a tensor by what was observed of it.

    Args:
        sample: ``[M]`` numbers.
        tensor_format: How it is stored.
        ends: Low and high of ``[1, M]``.
    """
    low, high = ends(sample[None])
    return static_grid(tensor_format, ActivationRange(float(low), float(high)).with_zero, CPU)


def clamp_codes(step: Step, form: Form) -> tuple[int, int]:
    """Smallest and largest code that a step makes."""
    return form.code(step.low), form.code(step.high)
