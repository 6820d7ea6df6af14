"""Networks that cannot be differentiated, with every estimator that differentiates."""

import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

from mpq import ESTIMATORS, Calibration, Precision
from mpq.cli.__main__ import app
from mpq.errors import GradientError, ModelError
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes import differentiation
from tests.blind import examples
from tests.sensitivity.gradient_users import DIFFERENTIATING, WITHOUT_GRADIENTS

CANDIDATES = tuple(map(Precision.parse, ("w2", "w4a8", "fp32")))
TWICE = (
    "hessian-eigenvalue",
    "hessian-form",
    "hessian-trace:matrix=hessian",
    "zero-cost:proxy=grasp",
)


class Three(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def body(self, x: Tensor) -> Tensor:
        """All but the last layer."""
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        found: Tensor = self.c(self.body(x))
        return found


class NoGrad(Three):
    """Everything without gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x)


class FrozenBackbone(Three):
    """All but the head without gradients."""

    @torch.no_grad()
    def body(self, x: Tensor) -> Tensor:
        """Features."""
        return super().body(x)


class InferenceMode(Three):
    """Everything in inference mode."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x)


class InferenceBackbone(Three):
    """Features that autograd refuses to save."""

    @torch.inference_mode()
    def body(self, x: Tensor) -> Tensor:
        """Features."""
        return super().body(x)


class Reentrant(Three):
    """The old kind of checkpoint, which takes gradients by its arguments only."""

    def body(self, x: Tensor) -> Tensor:
        """Features."""
        with warnings.catch_warnings():  # the input needs no gradient
            warnings.simplefilter("ignore")
            found: Tensor = checkpoint(super().body, x, use_reentrant=True)
        return found


class Detached(Three):
    """An output without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x).detach()


class Numpy(Three):
    """Features by numpy."""

    def body(self, x: Tensor) -> Tensor:
        """Features."""
        return torch.from_numpy(super().body(x).numpy())


class InPlace(Three):
    """What a layer read is overwritten, and put back."""

    def body(self, x: Tensor) -> Tensor:
        """Features."""
        h = torch.relu(self.a(x))
        y: Tensor = self.b(h)
        return y + h.add_(1.0).sub_(1.0)


class Double(torch.autograd.Function):
    """An operation whose author wrote no backward pass."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        """Twice the input."""
        return x * 2


class Raising(Double):
    """One whose backward pass is a reminder."""

    @staticmethod
    def backward(_: object, __: Tensor) -> Tensor:
        """Not yet."""
        raise ValueError("to be written")


class Square(torch.autograd.Function):
    """One that can be differentiated once."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """The square."""
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.BackwardCFunction, g: Tensor) -> Tensor:
        """Its derivative."""
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Custom(Three):
    """An operation of the user's between two layers.

    Args:
        operation: Which one.
    """

    def __init__(self, operation: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.operation = operation

    def body(self, x: Tensor) -> Tensor:
        """Features."""
        found: Tensor = self.operation.apply(super().body(x))
        return found


CAUSES: dict[str, tuple[nn.Module, str]] = {
    "no_grad": (NoGrad(), r"layer 'a' runs without gradients .*torch.no_grad"),
    "frozen backbone": (FrozenBackbone(), r"layer 'a' runs without gradients .*torch.no_grad"),
    "inference_mode": (InferenceMode(), "layer 'a' runs in inference_mode"),
    "inference backbone": (InferenceBackbone(), "layer 'a' runs in inference_mode"),
    "reentrant checkpoint": (Reentrant(), "layer 'a' .*use_reentrant=True"),
    "detach": (Detached(), "does not depend on any quantizable layer .*detach"),
    "numpy": (Numpy(), r"numpy \(Can't call numpy\(\) on Tensor that requires grad"),
    "in place": (InPlace(), "in place"),
    "no backward": (Custom(Double), r"no backward \(You must implement either"),
    "raising backward": (Custom(Raising), r"fails when gradients are computed \(to be written\)"),
}


def asked(model: nn.Module) -> Estimation:
    """The question of a network."""
    data = examples(64)
    network, calibration = Network.of(model.eval(), data), Calibration.of(data)
    ranges = ActivationRanges.calibrate(network, calibration, CANDIDATES)
    return Estimation(network, calibration, Quantizer(ranges), CANDIDATES)


@cache
def question(cause: str) -> Estimation:
    """Of the network with that cause."""
    return asked(CAUSES[cause][0])


@pytest.mark.parametrize("name", DIFFERENTIATING)
@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_is_named_and_another_estimator_advised(cause: str, name: str) -> None:
    """In our words, whatever estimator; never an error of torch's."""
    with pytest.raises(GradientError, match=CAUSES[cause][1]) as caught:
        ESTIMATORS.build(name, 0).estimate(question(cause))

    assert str(caught.value).startswith("the network cannot be differentiated: ")
    assert "--sensitivity auto or measured" in str(caught.value)


@pytest.mark.parametrize("cause", CAUSES)
def test_auto_measures_and_says_why(cause: str) -> None:
    """By the kind of error, not by its words."""
    on = question(cause)

    found, measured = (ESTIMATORS.build(name, 0).estimate(on) for name in ("auto", "measured"))

    np.testing.assert_array_equal(found.table.values, measured.table.values)
    assert found.check is not None
    assert re.search(CAUSES[cause][1], found.check.fallback)
    assert "--sensitivity" not in found.check.fallback


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_the_others_need_no_gradients(cause: str, name: str) -> None:
    """What is advised works."""
    table = ESTIMATORS.build(name, 0).estimate(question(cause)).table

    assert np.isfinite(table.values).all()


@pytest.mark.parametrize("name", TWICE)
def test_an_operation_without_a_second_derivative(name: str) -> None:
    """It would leave the layers before it at 0; a first derivative is no trouble."""
    on = asked(Custom(Square))

    with pytest.raises(GradientError, match="an operation in it has no second derivative"):
        ESTIMATORS.build(name, 0).estimate(on)

    assert ESTIMATORS.build("sketch", 0).estimate(on).table.values[0].any()


class HiddenWeight(nn.Linear):
    """A layer whose own forward gradients do not see into."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Twice a linear layer."""
        return super().forward(x) * 2


def test_a_layer_that_hides_its_weight_is_measured_by_auto() -> None:
    """It crashed, since its message had none of the words that were looked for."""
    model = Three()
    model.b = HiddenWeight(8, 8)

    found = ESTIMATORS.build("auto", 0).estimate(asked(model))

    assert found.check is not None
    assert "layer 'b' hides its weight from gradients" in found.check.fallback


def test_refining_where_nothing_can_be_differentiated() -> None:
    """Who has said auto is not advised to say it."""
    on = question("no_grad")
    estimator = ESTIMATORS.build("auto", 0)

    with pytest.raises(ModelError, match=r"--refine needs gradients, .* search without it"):
        estimator.estimate_at(on, {})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_memory_that_runs_out_is_not_called_a_missing_gradient(error: RuntimeError) -> None:
    """Measuring would only hide it."""
    with pytest.raises(type(error)) as caught, differentiation.translated():
        raise error

    assert caught.value is error


def test_command_line_names_the_cause(tmp_path: Path) -> None:
    """One line, and no traceback."""
    (tmp_path / "frozen.py").write_text(
        "from tests.sensitivity.test_not_differentiable import FrozenBackbone\n"
        "from tests.blind import examples\n"
        "def net():\n    return FrozenBackbone().eval()\n"
    )
    arguments = ["search", "--model", f"{tmp_path / 'frozen.py'}:net"]
    arguments += ["--data", f"{tmp_path / 'frozen.py'}:examples", "--limit", "effective_bits=6"]

    found = CliRunner().invoke(app, [*arguments, "--sensitivity", "fisher"])

    assert found.exit_code != 0
    said = " ".join(found.output.split())
    assert "cannot be differentiated: layer 'a' runs without gradients" in said
    assert "--sensitivity auto or measured" in said
