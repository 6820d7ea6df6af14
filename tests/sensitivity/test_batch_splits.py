"""Tables do not depend on how the same examples are split into batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.network.examples import Calibration
from mpq.network.metric import KL
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, Sensitivity

# Compares the examples of a batch with each other, and says so.
MIXING = ("orthogonality",)
NAMES = tuple(name for name in mpq.ESTIMATORS.names() if name not in MIXING)
VARIANTS = (
    "fisher:labels=targets",
    "first-order:labels=targets",
    "hessian-eigenvalue:loss=cross-entropy",
    "hessian-trace:num_probes=1",
    "hessian-trace:num_probes=5",
    "hessian-trace:tolerance=0.1",
    "hessian-trace:matrix=hessian,num_probes=4",
    "hessian-trace:matrix=hessian,loss=cross-entropy,num_probes=4",
    "measured:interactions=true,num_probes=3",
    "measured:batched=true",
    "sketch:num_probes=3",
    "sketch:temperature=1",
    "zero-cost:proxy=grasp",
    "zero-cost:proxy=snip",
    "zero-cost:formula=sum(abs(g)+h*square(a*w))",
)
SPLITS = ((4, 4, 4, 4), (5, 5, 6))
CHOICES = tuple(map(Precision.parse, ("w2", "w4a8", "w8a8d", "w4g4a4s", "fp8")))


class Net(nn.Module):
    """Convolutions, a shortcut, a normalization and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.stem(x))
        y = y + self.norm(torch.tanh(self.again(y)))
        y = torch.tanh(self.again(y)).mean(dim=(2, 3))
        out: Tensor = self.head(y)
        return out


class Sequence(nn.Module):
    """A score of classes at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.inner = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.inner(self.table(x))))
        return out


def split(x: Tensor, y: Tensor, sizes: tuple[int, ...]) -> list[Any]:
    """The same examples in batches."""
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@dataclass(frozen=True, eq=False)
class Setting:
    """A network and its examples; no estimator changes either.

    Args:
        ranges: Those of all examples.
        x: Inputs.
        y: A class for each.
    """

    network: Network
    ranges: ActivationRanges
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor) -> "Setting":
        """All examples in one batch."""
        whole = Calibration.of(split(x, y, (len(x),)))
        network = Network.of(model.eval(), whole, metric=KL)
        return cls(network, ActivationRanges.calibrate(network, whole, CHOICES), x, y)

    def found(self, sizes: tuple[int, ...], name: str) -> Sensitivity:
        """What an estimator says of the examples in batches of these sizes."""
        data = Calibration.of(split(self.x, self.y, sizes))
        on = Estimation(self.network, data, Quantizer(self.ranges), CHOICES)
        return mpq.ESTIMATORS.build(name).estimate(on)


@pytest.fixture(scope="module")
def net() -> Setting:
    """Images, and a class each."""
    torch.manual_seed(0)
    return Setting.of(Net(), torch.randn(16, 1, 6, 6) * 3, torch.randint(5, (16,)))


@pytest.fixture(scope="module")
def sequence() -> Setting:
    """Tokens, and a class at every position."""
    torch.manual_seed(0)
    return Setting.of(Sequence(), torch.randint(7, (16, 5)), torch.randint(4, (16, 5)))


@pytest.mark.parametrize("setting", ["net", "sequence"])
@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_table_is_that_of_any_split(
    setting: str, name: str, request: pytest.FixtureRequest
) -> None:
    """One batch of 16, four of 4, or 5 + 5 + 6: the same numbers up to rounding."""
    on: Setting = request.getfixturevalue(setting)
    whole = on.found((16,), name)

    for sizes in SPLITS:
        table = on.found(sizes, name).table.values
        np.testing.assert_allclose(table, whole.table.values, rtol=1e-4, err_msg=str(sizes))


@pytest.mark.parametrize("name", MIXING)
def test_who_depends_on_the_split_says_so(name: str) -> None:
    """In the docstring, in these words."""
    text = " ".join((type(mpq.ESTIMATORS.build(name)).__doc__ or "").split())

    assert "depends on how examples are split into batches" in text
