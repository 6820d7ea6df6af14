"""Signs by example: the same ones in any batch, and as random as signs should be."""

import pytest
import torch

from mpq.network.divergence import LOGITS_AT_ONCE, fisher_probe, random_signs
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import KL
from mpq.network.signs import ExampleSigns


def drawn(
    start: int, size: int, number: int = 0, seed: int = 0, channels: int = 37
) -> torch.Tensor:
    """Signs of some examples with three positions each."""
    like = torch.zeros(size, 3, channels)
    return random_signs(like, ExampleSigns(seed, number, start, size))


def test_an_example_has_its_signs_in_any_batch() -> None:
    """Six examples at once, or one and five, or one by one."""
    whole = drawn(10, 6)

    assert torch.equal(torch.cat([drawn(10, 1), drawn(11, 5)]), whole)
    assert torch.equal(torch.cat([drawn(10 + i, 1) for i in range(6)]), whole)


@pytest.mark.parametrize("other", [{"seed": 1}, {"number": 1}, {"start": 6}])
def test_another_seed_probe_or_example_has_other_signs(other: dict[str, int]) -> None:
    """They agree in half of the places, up to four deviations of so many coins."""
    signs = drawn(0, 6, channels=1000), drawn(**{"start": 0, "size": 6, **other}, channels=1000)

    assert abs((signs[0] * signs[1]).mean()) < 4 / 18000**0.5


def test_draws_of_one_source_are_independent() -> None:
    """Two terms of a metric that draw in turn."""
    source, like = ExampleSigns(0, 0, 0, 8), torch.zeros(8, 1, 1000)
    first, second = random_signs(like, source), random_signs(like, source)

    assert abs((first * second).mean()) < 4 / 8000**0.5


def test_signs_have_the_moments_of_coins() -> None:
    """Every place of every example alone, and every two places and examples together."""
    count = 20_000
    signs = random_signs(torch.zeros(count, 1, 16), ExampleSigns(3, 0, 0, count))[:, 0]
    bound = 5 / count**0.5

    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(dim=0).abs().max() < bound
    assert (signs.T @ signs / count - torch.eye(16)).abs().max() < bound
    # The next example, and the one whose index differs in a single bit.
    for step in (1, 64, 4096):
        assert (signs[step:] * signs[:-step]).mean(dim=0).abs().max() < bound


def test_a_probe_in_pieces_is_that_of_the_whole() -> None:
    """Logits that are more than are taken at once: what each example gets is what it gets alone."""
    torch.manual_seed(0)
    channels = LOGITS_AT_ONCE // 8 + 3
    logits, weights = torch.randn(3, 5, channels), torch.full((3, 5), 0.2)

    together = fisher_probe(logits, weights, ExampleSigns(0, 0, 4, 3))
    alone = [
        fisher_probe(logits[i : i + 1], weights[i : i + 1], ExampleSigns(0, 0, 4 + i, 1))
        for i in range(3)
    ]

    torch.testing.assert_close(together, torch.cat(alone))


def test_rows_of_one_example_have_signs_of_their_own() -> None:
    """Of a batch that is one example (the nodes of a graph) no two rows are alike."""
    signs = random_signs(torch.zeros(4, 1, 64), ExampleSigns(0, 0, 0, 1))[:, 0]

    assert len(signs.unique(dim=0)) == 4


def test_a_batch_knows_where_it_starts() -> None:
    """In any split, of a part of the examples as well, and cut within a batch."""
    x = torch.arange(10.0)[:, None]
    data = Calibration.of([x[:4], x[4:7], x[7:]])

    for part in (data, data.between(2, 9), data.until(5), data.split(0.3)[1]):
        for batch in part:
            assert batch.start == int(batch.tensors[0][0])
            assert batch.slice(1, 2).start == batch.start + 1
    assert [batch.start for batch in data.whole()] == [0, 1, 2]


def test_probes_of_a_metric_are_by_example() -> None:
    """The default metric draws what the source gives, whatever else is in the batch."""
    torch.manual_seed(0)
    logits, weights = torch.randn(6, 2, 5), torch.full((6, 2), 0.5)
    batch = Batch((logits,), start=3)
    whole = KL.probe(logits, weights, ExampleSigns.of(0, 1, batch))
    cut = batch.slice(4, 6)
    part = KL.probe(logits[4:], weights[4:], ExampleSigns.of(0, 1, cut))

    torch.testing.assert_close(whole[4:], part)
