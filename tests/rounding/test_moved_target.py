"""The moved target is the least squares weight for inputs that are not those it was made for."""

import numpy as np
import pytest
import torch

from mpq.errors import InputError
from mpq.rounding.moved_target import moved_target

RNG = np.random.default_rng(0)
TINY = 1e-9


def moments(x: np.ndarray, x_q: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """``[1, K, K]`` of columns ``[K, n]``."""
    pairs = ((x_q @ x_q.T), (x @ x_q.T))
    first, second = (torch.from_numpy(each / x.shape[1])[None] for each in pairs)
    return first, second


def inputs(num_inputs: int = 6) -> tuple[np.ndarray, np.ndarray]:
    x = RNG.normal(size=(num_inputs, 200))
    return x, x + 0.3 * RNG.normal(size=x.shape) + 0.2


def test_without_damping_it_is_the_least_squares_solution() -> None:
    """As numpy's ``lstsq`` finds it from the examples themselves, without a moment."""
    weight, (x, x_q) = RNG.normal(size=(4, 6)), inputs()
    expected, *_ = np.linalg.lstsq(x_q.T, (weight @ x).T, rcond=None)

    found = moved_target(torch.from_numpy(weight), *moments(x, x_q), damping=TINY)

    np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-5, atol=1e-6)


def test_damping_is_a_ridge_around_the_weight() -> None:
    """The change is the ridge regression of what the outputs lack, by augmented least squares."""
    weight, (x, x_q) = RNG.normal(size=(4, 6)), inputs()
    ridge = 0.1 * np.square(x_q).sum(axis=1).mean()  # of sums over examples
    tall = np.concatenate([x_q.T, np.sqrt(ridge) * np.eye(6)])
    wanted = np.concatenate([(weight @ (x - x_q)).T, np.zeros((6, 4))])
    change, *_ = np.linalg.lstsq(tall, wanted, rcond=None)

    found = moved_target(torch.from_numpy(weight), *moments(x, x_q), damping=0.1)

    np.testing.assert_allclose(found.numpy(), weight + change.T, rtol=1e-5, atol=1e-6)


def test_a_step_is_a_share_of_the_way() -> None:
    """Half a step ends in the middle, none where it began."""
    weight, pair = torch.randn(4, 6, generator=torch.manual_seed(0)), moments(*inputs())

    none, half, full = (moved_target(weight, *pair, step=step) for step in (0.0, 0.5, 1.0))

    torch.testing.assert_close(none, weight)
    torch.testing.assert_close(half, (weight + full) / 2)


def test_groups_are_weights_of_their_own() -> None:
    """Rows of a group see the inputs of that group alone."""
    weight = torch.randn(4, 6, generator=torch.manual_seed(0))
    pairs = [moments(*inputs()) for _ in range(2)]
    together = (torch.cat([pair[i] for pair in pairs]) for i in range(2))

    found = moved_target(weight, *together)

    alone = [moved_target(weight[2 * i : 2 * i + 2], *pairs[i]) for i in range(2)]
    torch.testing.assert_close(found, torch.cat(alone))


@pytest.mark.parametrize("x", [np.zeros((6, 8)), RNG.normal(size=(6, 8))], ids=["zeros", "equal"])
def test_nothing_moves_where_inputs_are_as_they_were(x: np.ndarray) -> None:
    """Neither where nothing was broken, nor where nothing is read."""
    weight = torch.randn(4, 6, generator=torch.manual_seed(0))

    torch.testing.assert_close(moved_target(weight, *moments(x, x)), weight)


@pytest.mark.parametrize(("step", "damping"), [(1.5, 0.1), (-0.1, 0.1), (1.0, 0.0)])
def test_options_without_a_meaning_are_refused(step: float, damping: float) -> None:
    """With what was given."""
    weight, pair = torch.zeros(4, 6), moments(*inputs())

    with pytest.raises(InputError, match="a step from 0 to 1 with a damping above 0; got"):
        moved_target(weight, *pair, step=step, damping=damping)
