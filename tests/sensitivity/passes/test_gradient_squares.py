"""Squared gradients times squared changes, against autograd example by example."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.quantization import rounding
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity.passes import gradient_squares
from mpq.sensitivity.passes.gradient_squares import squared_products
from mpq.sensitivity.passes.weight_changes import WeightChanges
from mpq.sensitivity.passes.weight_gradients import PlainCall

FORMATS = [Precision.parse(text).weight for text in ("w2", "w4", "w8")]
NUM_EXAMPLES = 5


@pytest.fixture(autouse=True)
def _tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles for each weight, and several steps over examples."""
    torch.manual_seed(0)
    monkeypatch.setattr(rounding, "NUMBERS_AT_ONCE", 12)
    monkeypatch.setattr(gradient_squares, "WORK_ELEMENTS", 24)
    monkeypatch.setattr(gradient_squares, "SPREAD_ELEMENTS", 200)


def conv1d() -> nn.Module:
    """Hugging Face's, whose weight is stored ``[I, O]``."""
    layer = pytest.importorskip("transformers").pytorch_utils.Conv1D(5, 6)
    nn.init.normal_(layer.weight)
    found: nn.Module = layer
    return found


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(NUM_EXAMPLES, *shape)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 5), numbers(6)),
    "tokens": (lambda: nn.Linear(6, 5), numbers(3, 6)),
    "Conv1D": (conv1d, numbers(3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), numbers(4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), numbers(4, 5)),
    "embedding": (
        lambda: nn.Embedding(7, 4), lambda: torch.randint(7, (NUM_EXAMPLES, 6))
    ),
}  # fmt: skip


def gradient(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """``[D]`` by autograd."""
    (found,) = torch.autograd.grad((module(x) * g).sum(), weight_of(module))
    return found.flatten().double()


def expected(module: nn.Module, gradients: Sequence[Tensor]) -> list[float]:
    """``[F O]`` from examples' gradients ``[D]``, by the formula."""
    weight, quantizer = weight_of(module).detach(), Quantizer(ActivationRanges({}))
    changes = [quantizer.weight("layer", module, f).double() - weight for f in FORMATS]
    to_rows = layout_of(module).to_rows
    products = [[to_rows(g.view_as(change) * change) for g in gradients] for change in changes]
    squares = [torch.stack(of_format).square().sum(dim=(0, 2)) for of_format in products]
    flat: list[float] = torch.cat(squares).tolist()
    return flat


def found(module: nn.Module, *calls: PlainCall) -> list[float]:
    quantizer, weight = Quantizer(ActivationRanges({})), weight_of(module).detach()
    changes = WeightChanges("layer", module, weight, ORIGINAL.weight, FORMATS, quantizer)
    flat: list[float] = squared_products(calls, changes, NUM_EXAMPLES).T.flatten().tolist()
    return flat


def call(module: nn.Module, data: Callable[[], Tensor], is_split: bool = True) -> PlainCall:
    x = data()
    g = torch.randn_like(module(x))
    return PlainCall(module, x, g.detach(), *((x, g.detach()) if is_split else (None, None)))


@pytest.mark.parametrize("num_calls", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_squares_are_those_of_every_example(kind: str, num_calls: int) -> None:
    """Of the sum over calls; tokens of an embedding come several times."""
    make, data = KINDS[kind]
    module = make()
    calls = [call(module, data) for _ in range(num_calls)]
    gradients = [
        torch.stack([gradient(module, one.x[[n]], one.g[[n]]) for one in calls]).sum(dim=0)
        for n in range(NUM_EXAMPLES)
    ]

    assert found(module, *calls) == pytest.approx(expected(module, gradients), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_tensor_counts_as_the_square_of_its_sum(kind: str) -> None:
    """Where examples cannot be told apart."""
    make, data = KINDS[kind]
    module = make()
    shared = call(module, data, is_split=False)

    whole = gradient(module, shared.x, shared.g)
    assert found(module, shared) == pytest.approx(expected(module, [whole]), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_both_sorts_add_up(kind: str) -> None:
    """Every example has an even share of what is shared, by the root of their number."""
    make, data = KINDS[kind]
    module = make()
    split, shared = call(module, data), call(module, data, is_split=False)
    share = gradient(module, shared.x, shared.g) / NUM_EXAMPLES**0.5
    gradients = [gradient(module, split.x[[n]], split.g[[n]]) + share for n in range(NUM_EXAMPLES)]

    assert found(module, split, shared) == pytest.approx(expected(module, gradients), rel=1e-5)
