"""Binary and ternary weights, against every assignment of signs that there is."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.errors import PrecisionError
from mpq.quantization.codes import Codes
from mpq.quantization.level_tables import BINARY, TERNARY
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS, sign_scale
from mpq.quantization.rounding import weight_grid

LEVELS = {"binary": BINARY, "ternary": TERNARY}
EXACT = Numerics(group_scale="fp32")


def codes_of(spelling: str, rows: Tensor, method: str = "mse", numerics: Numerics = EXACT) -> Codes:
    """A weight's codes."""
    told = Precision.parse(spelling).weight
    return Codes.of(rows, told, weight_grid(rows, told, RANGE_METHODS.build(method), numerics))


def least_error(row: Tensor, levels: tuple[float, ...]) -> float:
    """Of all codes that a row may have, each with the scale that suits it best, in float64."""
    numbers = row.double().numpy()
    codes = np.array(list(product(levels, repeat=len(numbers))))
    lengths = (codes**2).sum(axis=1)
    scales = np.divide(codes @ numbers, lengths, out=np.zeros(len(codes)), where=lengths > 0)
    return float(((codes * scales[:, None] - numbers) ** 2).sum(axis=1).min())


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("seed", range(5))
def test_least_squares_finds_the_best_of_all_codes_and_scales(name: str, seed: int) -> None:
    """Of rows of few numbers with small and large ones, where everything can be tried."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 8, generator=generator) ** 3

    found = codes_of(name, rows).numbers()

    errors = (found - rows).double().square().sum(dim=1)
    for row, error in zip(rows, errors, strict=True):
        assert float(error) == pytest.approx(least_error(row, LEVELS[name]), rel=1e-5, abs=1e-12)


def test_the_scale_of_signs_is_the_mean_magnitude() -> None:
    """XNOR-Net's, per channel, per group and of the whole weight."""
    rows = torch.tensor([[1.0, -3.0, 2.0, 0.0], [-5.0, 5.0, 5.0, 5.0]])

    scales = [codes_of(f"wbinary{more}", rows).scale.tolist() for more in ("", "g2", "t")]

    assert scales == [[[1.5], [5.0]], [[2.0, 1.0], [5.0, 5.0]], [[3.25], [3.25]]]


def test_ternary_keeps_what_is_large() -> None:
    """A threshold at half the scale, which is the mean of what is above it."""
    rows = torch.tensor([[4.0, -6.0, 0.5, -1.0, 0.0]])

    codes = codes_of("ternary", rows)

    assert codes.codes.tolist() == [[1, -1, 0, 0, 0]]
    assert codes.scale.tolist() == [[5.0]]


@pytest.mark.parametrize("name", LEVELS)
def test_a_short_group_is_as_good_as_one_by_itself(name: str) -> None:
    """What fills it up does not count: binary has no code for 0."""
    rows = torch.randn(4, 11, generator=torch.Generator().manual_seed(0)) + 1

    found = codes_of(f"w{name}g8", rows)

    alone = torch.cat(
        [codes_of(name, rows[:, :8]).numbers(), codes_of(name, rows[:, 8:]).numbers()], 1
    )
    torch.testing.assert_close(found.numbers(), alone)
    one = codes_of(f"w{name}g8", rows[:, :3])  # shorter than a group
    torch.testing.assert_close(one.numbers(), codes_of(name, rows[:, :3]).numbers())


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
def test_a_row_of_zeros_stays_next_to_nothing(name: str, method: str) -> None:
    """Where no code stands for 0, the smallest scale does."""
    rows = torch.zeros(2, 8)
    rows[1] = torch.linspace(-1, 1, 8)

    for spelling in (f"w{name}", f"w{name}g4"):
        numbers = codes_of(spelling, rows, method, Numerics()).numbers()
        assert numbers[0].abs().max() < 1e-7
        assert numbers[1].abs().max() > 0.1


@pytest.mark.parametrize("method", ["minmax", "percentile:share=1"])
def test_other_range_methods_mean_what_they_say(method: str) -> None:
    """By the extremes every sign is the largest magnitude, which is seldom what one wants."""
    rows = torch.tensor([[1.0, -3.0, 2.0]])

    assert codes_of("binary", rows, method).numbers().tolist() == [[3.0, -3.0, 3.0]]


def test_the_scale_counts_large_rows_exactly() -> None:
    """Sums of many numbers are in double precision: a million ones have the mean 1."""
    rows = torch.full((1, 1 << 20), 0.1)

    assert sign_scale(rows, has_zero=True).item() == rows[0, 0].item()


@pytest.mark.parametrize(("name", "bits"), [("binary", 1), ("ternary", 2)])
def test_bits_of_a_weight(name: str, bits: int) -> None:
    """A code has whole bits, though three levels carry log2(3) of information."""
    per_channel, in_groups = (Precision.parse(f"w{name}{more}").weight for more in ("", "g64"))

    assert per_channel.stored_bits(64 * 64, 64) == 4096 * bits + 64 * 32
    assert in_groups.stored_bits(64 * 64, 64) == 4096 * bits + 64 * 16


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("w4abinary", "binary is for weights; write wbinarya32"),
        ("wternaryaternary", "ternary is for weights"),
        ("wternaryz", "ternary is symmetric: it has no zero point"),
    ],
)
def test_what_is_no_precision_is_refused(spelling: str, message: str) -> None:
    """With what to write instead."""
    with pytest.raises(PrecisionError, match=message):
        Precision.parse(spelling)
