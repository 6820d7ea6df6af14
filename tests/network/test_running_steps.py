"""Steps are read from what a network is called with, by name or by place, whoever gives it how."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.errors import DataError
from mpq.network.examples import Calibration
from mpq.network.running_steps import RunningSteps, parameters_of, step_values, steps_of

X = torch.ones(3, 2)
T = torch.tensor([5, 7, 9])


class Net(nn.Module):
    def forward(self, x: Tensor, t: Any, scale: float = 1.0) -> Tensor:
        return x * scale


@pytest.mark.parametrize("argument", ["t", 1])
@pytest.mark.parametrize("batch", [((X, T), None), {"x": X, "t": T}])
def test_by_name_and_by_place(argument: str | int, batch: Any) -> None:
    """An argument has both, however the examples give it."""
    found = steps_of(argument, Net(), Calibration([batch, batch]))

    assert found == (5.0, 7.0, 9.0) * 2


@pytest.mark.parametrize(
    "step", [4, 4.0, torch.tensor(4), torch.tensor([4]), torch.tensor([[4.0]])]
)
def test_one_number_is_that_of_all_examples(step: Any) -> None:
    """As samplers call denoisers: a number, or a tensor of one."""
    found = steps_of("t", Net(), Calibration([{"x": X, "t": step}]))

    assert found == (4.0, 4.0, 4.0)


def test_steps_in_a_column_are_steps() -> None:
    """``[N, 1]`` is as good as ``[N]``."""
    assert step_values("t", ("x", "t"), (X, T[:, None]), {}) == (5.0, 7.0, 9.0)


@pytest.mark.parametrize(
    ("argument", "batch", "match"),
    [
        ("step", {"x": X, "t": T}, "does not have the argument 'step'; it has x, t"),
        (4, ((X, T), None), "does not have argument 4; it has x, t"),
        ("t", {"x": X, "t": T[:2]}, "'t' has 2 steps for 3 examples"),
        ("t", {"x": X, "t": T[:, None].expand(3, 2)}, r"shape \(3, 2\), torch.int64"),
        ("t", {"x": X, "t": T > 6}, "torch.bool"),
        ("t", {"x": X, "t": "late"}, "holds a str; steps are numbers"),
        ("t", {"x": X, "t": float("nan")}, "NaN or infinite"),
        ("t", {"x": X, "t": None}, "does not have the argument 't'"),
    ],
)
def test_what_is_no_step_is_refused(argument: str | int, batch: Any, match: str) -> None:
    """Says what was expected and what came."""
    with pytest.raises(DataError, match=match):
        steps_of(argument, Net(), Calibration([batch]))


def test_a_network_that_runs_tells_its_steps() -> None:
    """Those of the last call, until its hook is taken off again."""
    net, running = Net(), RunningSteps("t")
    handle = running.follow(net)

    net(X, T)
    seen = running.values
    net(X, t=2)
    later = running.values
    handle.remove()
    net(X, T)

    assert (seen, later, running.values) == ((5.0, 7.0, 9.0), (2.0,), (2.0,))


def test_a_forward_of_any_arguments_has_no_places() -> None:
    """Names are looked up among what is given by name."""

    class Anything(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return X

    assert parameters_of(Anything()) == ()
    assert steps_of("t", Anything(), Calibration([{"x": X, "t": T}])) == (5.0, 7.0, 9.0)
