"""Losses on a share of the examples, as solvers select by them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpq
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.workflows.evaluate import Reference
from mpq.workflows.kept_answers import KeptAnswers

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def batches() -> Iterator[Any]:
    """Of unequal sizes."""
    return iter(X.split([16, 4, 16, 4]))


def net(seed: int) -> nn.Module:
    """Two layers, another one for every seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def apart(examples: torch.Tensor) -> float:
    """Mean KL divergence of the second network from the first."""
    with torch.no_grad():
        p, q = (net(seed)(examples).double().log_softmax(1) for seed in (1, 2))
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("are_kept", [True, False])
def test_a_share_is_measured_on_the_examples_that_it_says(
    are_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an own sum over these, whether or not the original's answers are kept."""
    if not are_kept:
        monkeypatch.setattr("mpq.workflows.evaluate.most_kept_bytes", lambda _: 0.0)
    reference = Reference(net(1), Calibration.of(batches()))

    some = reference.on_share(0.25, seed=3)

    examples = torch.cat([batch.args[0] for batch in some.data])
    assert len(examples) == 10
    assert len({tuple(row.tolist()) for row in examples} & {tuple(r.tolist()) for r in X}) == 10
    assert some.compare(net(2)).divergence == pytest.approx(apart(examples), rel=1e-5)


def test_a_share_is_drawn_by_its_seed() -> None:
    """The same seed draws the same examples, and another one others; all are all."""
    reference = Reference(net(1), Calibration.of(batches()))

    first, same, other = (
        reference.on_share(0.1, seed).compare(net(2)).divergence for seed in (1, 1, 2)
    )

    assert first == same != other
    assert reference.on_share(1.0, 1).compare(net(2)).divergence == pytest.approx(apart(X))


def test_few_examples_are_of_few_batches() -> None:
    """Every batch more would be a pass of its own; one example at the least."""
    known = KeptAnswers(0.0)
    for start, size in ((0, 16), (16, 4), (20, 16), (36, 4)):
        known.add(start, torch.zeros(size, 1))
    rng = np.random.default_rng(0)

    drawn = [known.drawn(share, rng) for share in (0.001, 0.1, 0.5)]

    assert [sum(map(len, each.values())) for each in drawn] == [1, 4, 20]
    assert [len(each) for each in drawn[:2]] == [1, 1]


class _Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 * torch.randn_like(x)


def test_a_network_that_draws_has_no_shares() -> None:
    """What it draws for an example depends on those before: told, and not measured otherwise."""
    model = nn.Sequential(nn.Linear(6, 8), _Noise(), nn.Linear(8, 3)).eval()
    data = [(x, None) for x in batches()]
    task = mpq.Task(model, data, data, candidates=["w4", "w8"], allow_randomness=0)

    with pytest.raises(InputError, match="leave selection out"):
        mpq.search(task, {"weight_bytes": "0.8x:w8"}, recipe="evopress", keep=["candidates"])
