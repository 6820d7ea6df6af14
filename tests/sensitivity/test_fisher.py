"""Diagonal Fisher information against dense per-example gradients and sums over classes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F

from mpq.errors import DataError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import DiagonalFisher, Estimation
from mpq.sensitivity.passes.weight_changes import WORK_ELEMENTS
from tests.largest import Largest

WEIGHT = Precision.parse("w3")
INPUT = Precision.parse("w32a4d")
BOTH = Precision.parse("w3a4d")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: Sequence[Any], *candidates: Precision) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.candidates = candidates
        self.quantizer = Quantizer(ActivationRanges.calibrate(self.network, self.data, candidates))

    def losses(self, labels: str = "targets", seed: int = 0) -> dict[str, list[float]]:
        """Layer name to its losses."""
        estimator = DiagonalFisher(labels, seed)
        found = estimator.estimate(
            Estimation(self.network, self.data, self.quantizer, self.candidates)
        )
        assert (found.table.name, found.table.unit) == ("fisher", "nats")
        return dict(zip(found.table.layers, found.table.values.tolist(), strict=True))

    def weight_error(self, name: str) -> Tensor:
        """Of ``WEIGHT``."""
        weight = self.network.weight(name)
        rounded = self.quantizer.weight(name, self.network.layer_module(name), WEIGHT.weight)
        return (rounded - weight).double()

    def input_error(self, name: str, x: Tensor) -> Tensor:
        """Of ``INPUT``."""
        rounded = self.quantizer.activation(
            name, self.network.layer_module(name), x, INPUT.activation
        )
        return (rounded - x).double()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters in float64."""
    return {name: p.detach().double() for name, p in model.named_parameters()}


def example_gradients(model: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """``[N, ...]`` gradients of every example's mean cross-entropy, by ``torch.func``."""

    def loss(weights: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(model, weights, (one[None],))
        logits = outputs.reshape(-1, outputs.shape[-1])
        return F.cross_entropy(logits, target.reshape(-1))

    one = x.double() if x.is_floating_point() else x
    found: dict[str, Tensor] = vmap(grad(loss), (None, 0, 0))(weights_of(model), one, targets)
    return found


def make_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Images(nn.Module):
    """A grouped, strided convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).tanh().mean(dim=(2, 3)))
        return out


class Words(nn.Module):
    """Logits for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(ids).tanh())
        return out


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.fc(x).tanh())
        return out


CASES = {
    "mlp": (make_mlp, (7, 4), (7,)),
    "images": (Images, (7, 4, 5, 5), (7,)),
    "words": (Words, (7, 5), (7, 5)),
    "twice": (Twice, (7, 4), (7,)),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_match_dense_example_gradients(case: str) -> None:
    """Half the mean of squared gradients, times squared errors, in batches of different sizes."""
    make, shape, target_shape = CASES[case]
    model = make().eval()
    x = torch.randint(0, 7, shape) if case == "words" else torch.randn(shape)
    targets = torch.randint(0, 3, target_shape)
    tool = Tool(model, [(x[:5], targets[:5]), (x[5:], targets[5:])], WEIGHT)

    found = tool.losses()

    gradients = example_gradients(model, x, targets)
    for name in found:
        fisher = gradients[f"{name}.weight"].square().mean(dim=0)
        expected = 0.5 * float((fisher * tool.weight_error(name).square()).sum())
        assert found[name] == pytest.approx([expected], rel=1e-4)


def test_many_examples_are_read_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many gradients are spread out at once does not matter."""
    tool = Tool(Images(), [(torch.randn(7, 4, 5, 5), torch.randint(0, 3, (7,)))], WEIGHT)
    expected = tool.losses()

    monkeypatch.setattr("mpq.sensitivity.passes.gradient_squares.SPREAD_ELEMENTS", 2000)
    found = tool.losses()

    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_no_copy_of_a_weight_is_made() -> None:
    """Of a network in bf16: neither of a linear layer nor of an embedding, nor of its gradient."""
    model = nn.Sequential(nn.Embedding(8192, 512), nn.Linear(512, 4096), nn.Linear(4096, 1024))
    tool = Tool(model.bfloat16(), [torch.randint(8192, (6, 3))], WEIGHT, Precision.parse("w4g128"))
    tool.losses("sampled")  # once, so that what comes next makes no scales

    with Largest() as largest:
        tool.losses("sampled")

    assert largest.numel <= WORK_ELEMENTS < 4096 * 512


def test_inputs_match_dense_gradients() -> None:
    """Squared gradients of each example's input, times its squared rounding errors."""
    model, x, targets = make_mlp().eval(), torch.randn(7, 4), torch.randint(0, 3, (7,))
    tool = Tool(model, [(x[:5], targets[:5]), (x[5:], targets[5:])], INPUT)
    parts = {"0": (model, x), "2": (model[2], model[:2](x).detach())}

    found = tool.losses()

    for name, (rest, read) in parts.items():
        weights = weights_of(rest)

        def loss(one: Tensor, target: Tensor, rest: Any = rest, weights: Any = weights) -> Tensor:
            return F.cross_entropy(functional_call(rest, weights, (one[None],)), target[None])

        gradients = vmap(grad(loss))(read.double(), targets)
        errors = tool.input_error(name, read)
        expected = 0.5 * float((gradients * errors).square().sum()) / 7
        assert found[name] == pytest.approx([expected], rel=1e-4)


def test_weights_and_inputs_add_up() -> None:
    """The loss of ``w3a4`` is that of ``w3`` plus that of ``a4``, for the same labels."""
    tool = Tool(make_mlp(), [torch.randn(6, 4)], WEIGHT, INPUT, BOTH)

    found = tool.losses("sampled")

    for weights, inputs, together in found.values():
        assert together == pytest.approx(weights + inputs)
        assert inputs > 0


@pytest.mark.parametrize("positions", [1, 3])
def test_sampled_labels_give_the_true_fisher_information(positions: int) -> None:
    """Mean over draws is the diagonal of ``J^T (diag(p) - p p^T) J``, averaged over positions."""
    model, x = make_mlp().eval(), torch.randn(2, positions, 4)
    tool = Tool(model, [x.repeat(400, 1, 1)], WEIGHT, INPUT)

    found = tool.losses("sampled")

    weights = weights_of(model)
    jacobians = jacrev(lambda w: functional_call(model, w, (x.double(),)))(weights)
    p = functional_call(model, weights, (x.double(),)).softmax(dim=-1)  # [2, P, 3]
    cover = p.diag_embed() - p[..., None] * p[..., None, :]
    for name in found:
        j = jacobians[f"{name}.weight"].flatten(3)  # [2, P, 3, D]
        diagonal = torch.einsum("npcd,npce,nped->nd", j, cover, j).mean(dim=0) / positions
        expected = 0.5 * float(diagonal @ tool.weight_error(name).square().flatten())
        assert found[name][0] == pytest.approx(expected, rel=0.1)


def test_examples_that_share_a_tensor_are_seen_as_independent() -> None:
    """A bias for all examples, from an embedding that reads the same ids once per batch."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.fc = nn.Embedding(3, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x) + self.bias(torch.arange(3)).diagonal()
            return out

    model, x = Shared().eval(), torch.randn(1, 4).repeat(1000, 1)
    tool = Tool(model, list(x.split(10)), WEIGHT)

    found = tool.losses("sampled")["bias"]

    p = model(x[:1]).detach().double().softmax(dim=-1)[0]
    errors = tool.weight_error("bias").diagonal().square()
    expected = 0.5 * float((p * (1 - p)) @ errors)  # the gradient of logit c is p_c - [c = label]
    assert found == pytest.approx([expected], rel=0.2)


def test_masked_targets_do_not_count() -> None:
    """The mean is one over the targets that there are."""
    ids, targets = torch.randint(0, 7, (4, 5)), torch.randint(0, 3, (4, 5))
    hidden = targets.clone()
    hidden[:, 2:] = -100
    tool = Tool(Words(), [(ids, hidden)], WEIGHT)

    found = tool.losses()

    kept = Tool(tool.network.module, [(ids[:, :2], targets[:, :2])], WEIGHT).losses()
    for name in found:
        assert found[name][0] == pytest.approx(kept[name][0], rel=1e-4)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "labels=targets, unlike labels=sampled, needs targets, and the data has none"),
        (torch.zeros(6, 2, dtype=torch.long), r"class indices \(6, 1\), one per position"),
        (torch.zeros(6), "class indices"),
        (torch.full((6,), 3), "target 3, but the network has 3 classes"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor | None, message: str) -> None:
    """In words that say what is wanted."""
    tool = Tool(make_mlp(), [(torch.randn(6, 4), targets)], WEIGHT)

    with pytest.raises(DataError, match=message):
        tool.losses()


def test_other_labels_are_refused() -> None:
    """There are two kinds."""
    with pytest.raises(UnknownNameError, match="no choice of labels 'true'"):
        DiagonalFisher(labels="true")
