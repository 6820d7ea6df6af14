"""Branches beside codes that every rounding makes, by the list of roundings."""

from itertools import pairwise

import pytest
import torch

from mpq.quantization.codes import Codes
from mpq.quantization.numerics import OWN
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding import ROUNDINGS, AdaRound, WeightRounding
from mpq.rounding.branches import Branching
from tests.rounding.cases import errors, formats_of, layer, rounded

ROUNDING = [AdaRound(iterations=10) if part is AdaRound else part() for part in ROUNDINGS]
all_roundings = pytest.mark.parametrize("rounding", ROUNDING, ids=lambda r: str(r.name))


def branched(
    rounding: WeightRounding, rows: torch.Tensor, moment: torch.Tensor, *spellings: str
) -> list[Codes]:
    """The weight in formats with branches; codes of plain ones are those of one pass."""
    formats = formats_of(*spellings)
    plain = list(dict.fromkeys(f.plain for f in formats))
    known: dict[TensorFormat, Codes] = dict(
        zip(plain, rounded(rounding, rows, moment, plain), strict=True)
    )
    weight = Branching(rows, moment, rounding, RANGE_METHODS.build("mse"), OWN)
    found = weight.codes(formats, known)
    return [known[formats[0].plain], *(found[f] for f in formats)]


@all_roundings
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "spellings",
    [
        ("w2g8+s1%", "w2g8+s3%", "w2g8+s20%"),
        ("w3+r1", "w3+r3", "w3+r8"),
        ("wcb2+s5%", "wcb2+s20%"),
        ("wmxfp4+r2", "wmxfp4+r5"),
    ],
    ids=["shares", "ranks", "codebooks", "blocks"],
)
def test_the_weighted_error_never_rises(
    rounding: WeightRounding, spellings: tuple[str, ...], groups: int
) -> None:
    """By the damped second moment: not above the plain format's, nor with the branch."""
    rows, moment = layer(16, 24, groups)
    rows.view(-1)[::41] *= 6

    found = branched(rounding, rows, moment, *spellings)

    costs = [float(errors(rows, codes.numbers(), moment).sum()) for codes in found]
    for less, more in pairwise(costs):
        assert more <= less * (1 + 1e-6), costs
    for codes in found[1:]:
        assert codes.stored(rows).why_not(codes.tensor_format, (16, 24)) == ""


@all_roundings
def test_a_format_alone_is_as_beside_others(rounding: WeightRounding) -> None:
    """Of a weight whose plain codes are not known, too."""
    rows, moment = layer(12, 16)
    weight = Branching(rows, moment, rounding, RANGE_METHODS.build("mse"), OWN)
    several, one = formats_of("w3+s5%", "w3+r2", "w2+r2"), formats_of("w3+r2")

    found, alone = weight.codes(several, {}), weight.codes(one, {})

    assert torch.equal(found[one[0]].numbers(), alone[one[0]].numbers())


def test_an_input_that_counts_more_gets_the_branch() -> None:
    """Of two that are rounded as badly."""
    rows = torch.full((4, 8), 1.0)
    rows[:, 2] = rows[:, 5] = 0.4
    moment = torch.eye(8)[None].clone()
    moment[0, 5, 5] = 100.0

    _, found = branched(ROUNDINGS.build("nearest"), rows, moment, "wbinary+s12.5%")

    assert found.branch is not None
    assert torch.from_numpy(found.branch.numbers(8)).nonzero()[:, 1].tolist() == [5] * 4
