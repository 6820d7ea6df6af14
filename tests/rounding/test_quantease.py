"""QuantEase against its definition, code by code in double precision."""

import numpy as np
import pytest
import torch

from mpq.errors import InputError
from mpq.quantization.codes import Codes
from mpq.rounding import Nearest
from mpq.rounding.quantease import QuantEase
from tests.rounding.cases import Array, damped, errors, formats_of, layer, points, rounded


def textbook(start: Codes, rows: torch.Tensor, form: Array, sweeps: int) -> Array:
    """Every code in turn at the least error of all codes, by trying them."""
    found = start.numbers().double().numpy().copy()
    for row, target in enumerate(rows.double().numpy()):
        choices = points(start, row)
        for _ in range(sweeps):
            for k, numbers in enumerate(choices):
                off = np.repeat((found[row] - target)[None], len(numbers), axis=0)
                off[:, k] = numbers - target[k]
                found[row, k] = numbers[np.einsum("ni,ij,nj->n", off, form, off).argmin()]
    return found


@pytest.mark.parametrize("spelling", ["w2", "w3", "w4z", "w3zg8", "fp4", "mxfp4"])
@pytest.mark.parametrize(("num_inputs", "sweeps"), [(7, 1), (40, 3)])
def test_codes_are_those_of_the_definition(spelling: str, num_inputs: int, sweeps: int) -> None:
    rows, moment = layer(4, num_inputs, seed=num_inputs)
    (start,) = rounded(Nearest(), rows, moment, formats_of(spelling))

    (found,) = rounded(QuantEase(sweeps=sweeps), rows, moment, formats_of(spelling))

    expected = textbook(start, rows, damped(moment[0]), sweeps)
    assert np.allclose(found.numbers().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.scale, start.scale)


@pytest.mark.parametrize("spelling", ["w2", "w4g16", "nf4"])
def test_more_sweeps_never_lose_more(spelling: str) -> None:
    """Less than to nearest after the first, and no row more from one to the next."""
    rows, moment = layer(24, 48, seed=3)
    (nearest,) = rounded(Nearest(), rows, moment, formats_of(spelling))
    before = errors(rows, nearest.numbers(), moment)
    for sweeps in (1, 2, 5, 25):
        (found,) = rounded(QuantEase(sweeps=sweeps), rows, moment, formats_of(spelling))
        after = errors(rows, found.numbers(), moment)
        assert (after <= before * (1 + 1e-4)).all()
        before = after
    assert before.sum() < 0.8 * errors(rows, nearest.numbers(), moment).sum()


@pytest.mark.parametrize("options", [{"sweeps": 0}, {"damping": 0.0}])
def test_options_without_a_meaning_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="quantease needs"):
        QuantEase(**options)  # type: ignore[arg-type]
