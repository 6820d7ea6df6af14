"""The original's answers are kept as far as there is room, and given again beyond it."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mpq._support.pages import ALLOWED
from mpq.errors import DataError
from mpq.network.examples import Calibration
from mpq.workflows.evaluate import Reference
from mpq.workflows.kept_answers import KeptAnswers

BATCHES = [torch.randn(size, 6, generator=torch.Generator().manual_seed(size)) for size in (4, 3)]
ANSWER_BYTES = 4 * 5
"""Of one example: five classes."""


@pytest.fixture(params=[0, 4, 7])
def num_kept(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many examples' answers are kept: an eighth of what is allowed."""
    before = ALLOWED.set(8 * ANSWER_BYTES * request.param + 1)
    yield request.param
    ALLOWED.reset(before)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()


def test_what_is_not_kept_is_answered_again(num_kept: int) -> None:
    """Losses, checksum and the divergence of one answer to everything are those of kept answers."""
    data, another = Calibration(BATCHES), network(1)
    before = ALLOWED.set(None)
    kept = Reference(network(0), data)
    ALLOWED.reset(before)

    found = Reference(network(0), data)

    assert found._known.is_whole == (num_kept == 7)
    losses, expected = (x.compare(another).by_example for x in (found, kept))
    assert losses.tolist() == expected.tolist()
    assert found.checksum == kept.checksum
    assert found.uninformed == kept.uninformed


def test_a_copy_that_is_sent_answers_again(num_kept: int) -> None:
    """The examples that are sent begin elsewhere, and are the same."""
    data, another = Calibration(BATCHES).between(2, 7), network(1)
    reference = Reference(network(0), data)

    sent = reference.with_its_examples()

    assert sent.compare(another).divergence == reference.compare(another).divergence


def test_a_network_that_draws_keeps_all_its_answers() -> None:
    """What it draws depends on the batches before."""
    before = ALLOWED.set(1)

    found = Reference(network(0), Calibration(BATCHES), seed=0)

    ALLOWED.reset(before)
    assert found._known.is_whole


def test_cut_answers_are_the_same() -> None:
    """Also of batches that are known to be there alone, the last of them a short one."""
    answers = KeptAnswers(5.0 * ANSWER_BYTES)
    answers.add(0, torch.arange(25.0).reshape(5, 5))
    answers.add(5, torch.zeros(3, 5))

    found = answers.cut(2)

    assert [len(found.at(start)) for start in (0, 2, 4)] == [2, 2, 1]  # type: ignore[arg-type]
    assert found.at(2).tolist()[0] == [10.0, 11.0, 12.0, 13.0, 14.0]  # type: ignore[union-attr]
    assert (found.at(5), found.at(7)) == (None, None)
    with pytest.raises(DataError, match="other batches than at first"):
        found.at(6)
