"""Examples left out in turn."""

import pytest
import torch
from torch import Tensor

from mpq.errors import DataError
from mpq.network.examples import Calibration
from mpq.network.folds import folds, parts


def numbers(data: Calibration) -> list[float]:
    return [x for batch in data for x in batch.args[0].flatten().tolist()]


def batches(*sizes: int) -> list[Tensor]:
    return list(torch.split(torch.arange(float(sum(sizes)))[:, None], list(sizes)))


@pytest.mark.parametrize("sizes", [(8, 8), (16,), (3, 5, 1, 7), (1,) * 16])
def test_every_example_is_left_out_once(sizes: tuple[int, ...]) -> None:
    """However they lie in batches."""
    found = folds(Calibration(batches(*sizes)), 0.25)
    unseen = [numbers(part) for _, part in found]
    assert sorted(x for part in unseen for x in part) == list(range(16))
    for (seen, _), part in zip(found, unseen, strict=True):
        assert len(part) == 4
        assert numbers(seen) == [x for x in range(16) if x not in part]
        assert seen.num_examples == 12


def test_the_first_is_the_split() -> None:
    data = Calibration(batches(5, 6))
    seen, unseen = folds(data, 0.3)[0]
    assert [numbers(seen), numbers(unseen)] == [numbers(x) for x in data.split(0.3)]


@pytest.mark.parametrize(("count", "share", "expected"), [(2, 0.25, 2), (3, 0.5, 1), (10, 0.9, 1)])
def test_parts_are_whole(count: int, share: float, expected: int) -> None:
    """A rest that is shorter is in no part."""
    assert len(folds(Calibration(batches(count)), share)) == expected


def test_parts_of_a_part() -> None:
    """The data may be a range of others itself, and parts may be cut again."""
    data = Calibration(batches(4, 4, 4)).between(2, 10)
    found = folds(data, 0.25)
    assert [numbers(unseen) for _, unseen in found] == [[8, 9], [6, 7], [4, 5], [2, 3]]
    seen, _ = found[1]
    assert numbers(seen.split(0.5)[1]) == [5, 8, 9]
    assert numbers(seen.until(2)) == [2, 3]


def test_whole_batches_stay_whole() -> None:
    data = Calibration(batches(3, 3, 3, 3)).whole()
    seen, unseen = folds(data, 0.25)[2]
    assert (seen.num_examples, unseen.num_examples) == (3, 1)
    assert all(batch.is_whole for batch in seen)


def test_axes_are_kept() -> None:
    """Of examples that lie along a second axis."""
    data = Calibration([torch.arange(12.0).view(1, 12)]).along((1,))
    seen, unseen = folds(data, 0.25)[1]
    assert next(iter(unseen)).args[0].tolist() == [[6.0, 7.0, 8.0]]
    assert seen.num_examples == 9


def test_a_single_example_cannot_be_left_out() -> None:
    with pytest.raises(DataError, match="cannot be split"):
        folds(Calibration(batches(1)), 0.25)


@pytest.mark.parametrize(("count", "share"), [(8, 0.25), (10, 0.25), (7, 0.3), (2, 0.5), (5, 0.9)])
def test_parts_are_all_examples_and_what_folds_leave_out(count: int, share: float) -> None:
    """In order, the last one first."""
    data = Calibration([torch.arange(float(count))[:, None]])
    found = [torch.cat([batch.args[0] for batch in part]) for part in parts(data, share)]
    assert torch.equal(torch.cat(found), torch.arange(float(count))[:, None])
    left_out = [torch.cat([b.args[0] for b in unseen]) for _, unseen in folds(data, share)]
    assert all(map(torch.equal, left_out, found[::-1]))
