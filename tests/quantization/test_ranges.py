"""What every range method promises, and its options."""

from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import InputError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization import grid, range_search
from mpq.quantization.aciq import Aciq
from mpq.quantization.entropy_range import Entropy
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.loss_range import LossWeighted
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS, LeastSquares, MinMax, Percentile, Ranges

METHODS = RANGE_METHODS.names()
NUMBER = NUMBER_FORMATS["int4"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_ends_lie_within_the_numbers(name: str, symmetric: bool) -> None:
    """Of every row, in order, float32 whatever comes."""
    rows = torch.randn(5, 3000).double()

    low, high = RANGE_METHODS.build(name).ends(rows, NUMBER, symmetric)

    assert low.dtype == high.dtype == torch.float32
    assert low.shape == high.shape == (5,)
    assert bool(((low >= rows.amin(1).float()) & (high <= rows.amax(1).float())).all())
    assert bool((low < high).all())


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_twice_the_size_have_twice_the_range(name: str) -> None:
    """A power of two changes no digit."""
    rows, method = torch.randn(3, 500), RANGE_METHODS.build(name)

    ends, doubled = method.ends(rows, NUMBER, True), method.ends(2 * rows, NUMBER, True)

    assert all(torch.equal(2 * end, other) for end, other in zip(ends, doubled, strict=True))


@pytest.mark.parametrize("name", [n for n in METHODS if RANGE_METHODS.get(n).reads_extremes_only])
def test_extremes_suffice_where_a_method_says_so(name: str) -> None:
    """The smallest and largest number give the range of all."""
    rows, method = torch.randn(3, 500), RANGE_METHODS.build(name)

    extremes = torch.stack([rows.amin(1), rows.amax(1)], dim=1)

    ends, found = method.ends(rows, NUMBER, True), method.ends(extremes, NUMBER, True)
    assert all(torch.equal(end, other) for end, other in zip(ends, found, strict=True))


def test_options_are_written_after_the_name() -> None:
    """As of every part."""
    assert RANGE_METHODS.build("percentile:share=0.9") == Percentile(0.9)
    assert RANGE_METHODS.build("mse:num_shrinks=10") == LeastSquares(10)
    assert RANGE_METHODS.build("minmax") == MinMax()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_share_of_a_percentile(share: float) -> None:
    """So many of the numbers lie between the ends."""
    rows = torch.rand(1, 20_001)

    low, high = Percentile(share).ends(rows, NUMBER, True)

    inside = float(((rows >= low) & (rows <= high)).double().mean())
    assert inside == pytest.approx(share, abs=1e-3)


def test_one_shrink_is_the_full_range() -> None:
    """Then ``mse`` has nothing to choose from."""
    rows = torch.randn(4, 300)

    least, full = (m.ends(rows, NUMBER, True) for m in (LeastSquares(1), MinMax()))

    assert all(torch.equal(a, b) for a, b in zip(least, full, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("percentile:share=0", "above 0 and at most 1; got 0.0"),
        ("percentile:share=1.5", "above 0 and at most 1; got 1.5"),
        ("percentile:share=99.9", "above 0 and at most 1; got 99.9"),
        ("mse:num_shrinks=0", "at least 1 range; got 0"),
        ("mse:num_halvings=-1", "got 16, and -1 halvings"),
        ("loss:num_halvings=-1", "got 16, and -1 halvings"),
        ("mse:norm=0", "above 0 and at most 16; got 0.0"),
        ("aciq:distribution=cauchy", "one of auto, gauss, laplace; got 'cauchy'"),
        ("entropy:num_bins=1", "num_bins >= 2 and num_thresholds >= 1; got 1 and 256"),
        ("loss:num_shrinks=0", "at least 1 range; got 0"),
        ("loss:guidance=2", "a share from 0 to 1; got 2.0"),
        ("mse:norm=17", "above 0 and at most 16; got 17.0"),
        ("best", "no range method 'best'"),
        ("minmax:share=1", "no option of minmax 'share'"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    """By a message with what was given."""
    with pytest.raises((InputError, UnknownNameError), match=message):
        RANGE_METHODS.build(text)


@pytest.mark.parametrize("text", [*METHODS, "percentile:share=0.5"])
def test_calibration_takes_a_method_by_name(text: str) -> None:
    """The layer's range is what the method makes of everything that the layer reads."""
    batches = [torch.randn(16, 6) for _ in range(3)]
    network = Network.of(nn.Sequential(nn.Linear(6, 2)).eval(), Calibration(batches))
    precision = Precision.parse("w8a8")

    found = ActivationRanges.calibrate(network, Calibration(batches), [precision], text)

    known = found.of("0", precision.activation)
    assert known is not None
    rows = torch.cat(batches).reshape(1, -1)
    low, high = RANGE_METHODS.build(text).ends(rows, precision.activation.number, False)
    np.testing.assert_array_equal([known.low, known.high], [float(low), float(high)])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (64, 3)])
def test_ranges_tried_at_once_are_those_tried_one_by_one(
    shape: tuple[int, int], symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, also where several are equally good, and at numbers that are not finite."""
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    rows[-1, -1], rows[0, 0] = torch.inf, 0.0
    at_once = LeastSquares().ends(rows, NUMBER, symmetric)

    monkeypatch.setattr(range_search, "NUMBERS_AT_ONCE", 1)
    one_by_one = LeastSquares().ends(rows, NUMBER, symmetric)

    for found, expected in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


class Routed(nn.Module):
    """A layer that sees only the examples that are above 0: of some batches none."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[:, 0] > 0
        out = x.clone()
        out[chosen] = self.expert(x[chosen])
        return self.head(out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_an_input_adds_nothing(method: str) -> None:
    """An expert that no token of a batch reaches has no smallest number there."""
    with_none = torch.randn(8, 4)
    with_none[:, 0] = -1.0
    with_all = torch.randn(8, 4)
    with_all[:, 0] = 1.0
    network = Network.of(Routed().eval(), [with_all, with_none])
    w8a8 = Precision.parse("w8a8")

    both, alone = (
        ActivationRanges.calibrate(network, Calibration.of(data), [w8a8], method).of(
            "expert", w8a8.activation
        )
        for data in ([with_all, with_none], [with_all])
    )

    assert both == alone


@pytest.mark.parametrize(
    "ends", [(2.0, 1.0), (0.0, inf), (-inf, 0.0), (nan, 0.0), (0.0, nan), (inf, inf)]
)
def test_a_range_goes_up_and_ends(ends: tuple[float, float]) -> None:
    """Anything else would be a scale that is no number."""
    with pytest.raises(InputError, match="from a finite number up to another"):
        ActivationRange(*ends)


@pytest.mark.parametrize(
    ("ends", "covered"),
    [((1, 1), (0, 1)), ((-2, -1), (-2, 0)), ((0, 0), (0, 0)), ((-1, 2), (-1, 2))],
)
def test_a_range_of_one_number_is_a_range(
    ends: tuple[float, float], covered: tuple[float, float]
) -> None:
    """A layer may read a constant; what its grid covers has 0 in it."""
    assert ActivationRange(*ends).with_zero == ActivationRange(*covered)


@pytest.mark.parametrize(
    ("num_numbers", "sizes"), [(2**17, [2, 2, 1]), (2**18, [1] * 10), (1, [5])]
)
def test_some_ranges_are_tried_at_once(
    num_numbers: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """262,144 numbers, or one range, a long row in pieces; from the full range to a fifth of it."""
    seen: list[list[float]] = []

    def recording(made: grid.Grid, rows: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
        seen.append((made.scale * 15).tolist())
        return rounded(made, rows, work)

    rounded = grid.Grid.round
    monkeypatch.setattr(grid.Grid, "round", recording)
    row = torch.linspace(1.0, 2.0, num_numbers)[None].clone()
    row[0, -1] = 2.0

    RANGE_METHODS.build("mse:num_shrinks=5,num_halvings=0").ends(row, NUMBER_FORMATS["int4"], False)

    assert [len(highs) for highs in seen] == sizes
    pieces = -(-num_numbers // range_search.LONG_ROW)
    tried = [high for highs in seen[::pieces] for high in highs]
    assert tried == pytest.approx([2.0, 1.6, 1.2, 0.8, 0.4])


@pytest.mark.parametrize("norm", [0.5, 1.0, 2.4, 4.0])
@pytest.mark.parametrize("spelling", ["w3", "w3z", "wternary", "wnf3"])
def test_the_norm_of_the_errors(norm: float, spelling: str) -> None:
    """No other of the ranges has a smaller sum, by numpy's arithmetic."""
    row = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    wanted = Precision.parse(spelling).weight

    def error(low: torch.Tensor, high: torch.Tensor) -> float:
        rounded = grid.make_grid(wanted.number, wanted.symmetric, low, high).round(row)
        return float((np.abs((rounded - row).double().numpy()) ** norm).sum())

    method = LeastSquares(40, norm, num_halvings=0)
    found = error(*method.ends(row, wanted.number, wanted.symmetric))

    ends = row.amin(1), row.amax(1)
    tried = [error(*(end * f for end in ends)) for f in np.linspace(1.0, 0.2, 40)]
    assert found == pytest.approx(min(tried), rel=1e-6)


@pytest.mark.parametrize("count", [1, 4, 9, 50])
def test_the_median_magnitude_of_signs(count: int) -> None:
    """It has the least sum of absolute errors: of all magnitudes one is best, by trying each."""
    row = torch.randn(1, count, generator=torch.Generator().manual_seed(count))

    low, high = LeastSquares(norm=1).ends(row, NUMBER_FORMATS["binary"], True)

    magnitudes = row.abs().double().numpy()[0]
    sums = [np.abs(magnitudes - scale).sum() for scale in magnitudes]
    assert float(-low) == float(high)
    assert np.abs(magnitudes - float(high)).sum() == pytest.approx(min(sums))


def test_no_row_has_no_range() -> None:
    """Such as of a weight without output channels."""
    for method in ("minmax", "mse"):
        low, high = RANGE_METHODS.build(method).ends(torch.ones(0, 3), NUMBER_FORMATS["int4"], True)
        assert low.shape == high.shape == (0,)


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0000001])
def test_a_percentile_is_of_some_and_at_most_all(share: float) -> None:
    """All is let in, and so is next to nothing."""
    for let_in in (1.0, 1e-9):
        assert Percentile(let_in).share == let_in
    with pytest.raises(InputError, match="^percentile covers a share above 0 and at most 1; got"):
        Percentile(share)


@pytest.mark.parametrize(("share", "ends"), [(1.0, (0, 100)), (0.9, (5, 95)), (0.5, (25, 75))])
def test_both_tails_are_equally_long(share: float, ends: tuple[float, float]) -> None:
    """Of 101 numbers in any order a tail is half of what is left out."""
    row = torch.randperm(101, generator=torch.Generator().manual_seed(0)).float()[None]

    low, high = Percentile(share).ends(row, NUMBER_FORMATS["int8"], True)

    assert (float(low), float(high)) == ends


def test_a_range_is_widened_to_0() -> None:
    """On the side where it lacks it; the other end stays."""
    found = [ActivationRange(*ends).with_zero for ends in ((1, 2), (-2, -1), (-1, 2), (0, 0))]

    assert [(each.low, each.high) for each in found] == [(0, 2), (-2, 0), (-1, 2), (0, 0)]


@pytest.mark.parametrize("guidance", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_errors_count_by_their_weights(guidance: float, symmetric: bool) -> None:
    """Against every range tried one by one in numpy, double precision."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3, 400, generator=generator) + 0.5
    weights = torch.rand(3, 400, generator=generator) ** 8

    method = LossWeighted(40, guidance, num_halvings=0)
    ends = method.weighted_ends(rows, weights, NUMBER, symmetric)

    for row, weight, low, high in zip(rows.numpy(), weights.numpy(), *ends, strict=True):
        counts = 1 - guidance + guidance * weight.astype(float) / weight.mean(dtype=float)

        def error(factor: float, row: Any = row, counts: Any = counts) -> float:
            low, high = factor * min(row.min(), 0), factor * max(row.max(), 0)
            step, point = (high - low) / 15, 0
            if symmetric:
                step = max(-low / 8, high / 7)
            else:
                point = np.round(-low / step)
            codes = np.round(row / step) + point
            first, last = (-8, 7) if symmetric else (0, 15)
            return float((counts * ((np.clip(codes, first, last) - point) * step - row) ** 2).sum())

        factors = np.linspace(1, 0.2, 40)
        best = factors[np.argmin([error(factor) for factor in factors])]
        np.testing.assert_allclose([low, high], [best * row.min(), best * row.max()], rtol=1e-5)


def test_without_weights_the_loss_is_the_squared_error() -> None:
    """Of weights that are all 0, or not given at all."""
    rows = torch.randn(4, 300)
    given = LossWeighted().weighted_ends(rows, torch.zeros(4, 300), NUMBER, False)

    for found in (given, LossWeighted().ends(rows, NUMBER, False)):
        expected = LeastSquares().ends(rows, NUMBER, False)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_have_no_gradients_of_inputs() -> None:
    """``loss`` is refused for them before anything is run."""
    with pytest.raises(InputError, match="take it as --activation-range"):
        Ranges(weight="loss")


@pytest.mark.parametrize(
    ("distribution", "published"),
    [
        ("gauss", [1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92]),
        ("laplace", [2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89]),
    ],
)
def test_clipping_in_closed_form_is_the_published_one(
    distribution: str, published: list[float]
) -> None:
    """Of 2 to 8 bits, in deviations (Banner et al. 2018); and least in a large sample."""
    generator = torch.Generator().manual_seed(0)
    if distribution == "gauss":
        rows = torch.randn(1, 400_000, generator=generator)
    else:
        sides = torch.rand(1, 400_000, generator=generator) - 0.5
        rows = -sides.sign() * torch.log1p(-2 * sides.abs())
    for bits, multiple in zip(range(2, 9), published, strict=True):
        number = NUMBER_FORMATS[f"int{bits}"]
        for method in (Aciq(), Aciq(distribution)):
            low, high = method.ends(rows, number, False)
            assert float(high - low) / 2 == pytest.approx(multiple, rel=0.01)
        half = Aciq(distribution).ends(rows.clamp(min=0), number, False)
        if bits < 8:
            assert float(half[0]) == 0
            assert float(half[1]) == pytest.approx(published[bits - 1], rel=0.01)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("is_half", [True, False])
def test_the_entropy_of_every_threshold(bits: int, is_half: bool) -> None:
    """Against the algorithm step by step, in loops."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5000, generator=generator) ** 3
    x = x.abs() if is_half else x
    number, num_bins = NUMBER_FORMATS[f"int{bits}"], 300
    num_levels = 2**bits if is_half else 2 ** (bits - 1)

    low, high = Entropy(num_bins, 1000).ends(x, number, False)

    largest, best = float(x.abs().max()), (inf, 0)
    counts = np.histogram(x.abs().numpy(), num_bins, (0, largest))[0].tolist()
    for kept in range(num_bins, num_levels - 1, -1):
        p = [*counts[: kept - 1], sum(counts[kept - 1 :])]
        q = [0.0] * kept
        for level in range(num_levels):
            bins = [j for j in range(kept) if j * num_levels // kept == level]
            full = [j for j in bins if counts[j] > 0]
            for j in full:
                q[j] = sum(counts[j] for j in bins) / len(full)
        if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
            continue
        apart = sum(
            a / sum(p) * np.log(a / sum(p) / (b / sum(q)))
            for a, b in zip(p, q, strict=True)
            if a > 0
        )
        best = min(best, (float(apart), -kept))
    expected = min((-best[1] + 0.5) / num_bins, 1) * largest
    assert float(high) == pytest.approx(min(expected, float(x.max())), rel=1e-6)
    assert float(low) == pytest.approx(max(-expected, float(x.min())), rel=1e-6)


def test_zeros_have_a_range_of_zeros() -> None:
    """Whatever looks at their distribution."""
    for method in (Aciq(), Entropy()):
        ends = method.ends(torch.zeros(2, 100), NUMBER, False)
        assert [end.tolist() for end in ends] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1e25])
def test_aciq_of_numbers_whose_squares_float32_does_not_hold(factor: float) -> None:
    """The ends go with the numbers."""
    rows = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))

    for some in (rows, rows.abs(), torch.ones_like(rows)):
        ends = Aciq().ends(some, NUMBER_FORMATS["int4"], False)
        scaled = Aciq().ends(some * factor, NUMBER_FORMATS["int4"], False)
        for end, found in zip(ends, scaled, strict=True):
            torch.testing.assert_close(found / factor, end, rtol=1e-3, atol=1e-4)
