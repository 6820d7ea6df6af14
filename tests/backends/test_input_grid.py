"""The grid of a static input: the simulation's, whichever way a target stores its codes."""

import pytest
import torch

from mpq.backends.input_grid import input_grid
from mpq.errors import ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import quantize_activation


def layer(precision: str, ends: ActivationRange | None) -> AssignedLayer:
    """A linear layer."""
    return AssignedLayer("fc", "linear", (2, 3), Precision.parse(precision), ends)


@pytest.mark.parametrize("precision", ["w8a8", "w8a8s", "w8a4", "w8aint16", "w8aint16s"])
def test_codes_in_every_place_are_the_numbers_of_the_simulation(precision: str) -> None:
    """Decoded by hand from codes that begin at 0, and from signed ones."""
    read, ends = Precision.parse(precision).activation, ActivationRange(-1.0, 3.0)
    x = torch.linspace(-2, 4, 101)[None]
    expected = quantize_activation(x, read, ends, 1)

    grid = input_grid(layer(precision, ends))

    half = 2 ** (read.number.bits - 1)
    from_zero = grid.codes(x) + (half if read.symmetric else 0)  # 0 to 2^bits - 1
    assert from_zero.min() >= 0
    assert from_zero.max() < 2 * half
    assert torch.equal((from_zero - grid.unsigned_zero_point) * grid.scale, expected)
    assert torch.equal((from_zero - half - grid.signed_zero_point) * grid.scale, expected)


def test_a_layer_without_a_range_is_named() -> None:
    """And not rounded on some other one."""
    with pytest.raises(ModelError, match="layer 'fc' has no calibrated activation range"):
        input_grid(layer("w8a8", None))
