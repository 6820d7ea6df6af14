"""Weight gradients per example, against autograd one example at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.sensitivity.passes.per_example import by_example, weight_gradients
from tests.sensitivity.passes.convolutions import CONVOLUTIONS


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def one_at_a_time(layer_module: Any, x: Tensor, g: Tensor) -> Tensor:
    """``[N, D]`` by running autograd for each example alone."""
    rows = []
    for one, grad in zip(x, g, strict=True):
        output = layer_module(one[None])
        (found,) = torch.autograd.grad(output, layer_module.weight, grad[None])
        rows.append(found.flatten())
    return torch.stack(rows)


def split(tensor: Tensor, batch_axis: int) -> Tensor:
    """The tensor of three examples, one after the other."""
    found = by_example(tensor, 3, batch_axis)
    assert found is not None
    return found


def assert_same(layer_module: Any, x: Tensor) -> None:
    """The gradients of a random direction agree, for every example."""
    layer_module = copy.deepcopy(layer_module).double()  # the list is read by other tests, too
    g = torch.randn(layer_module(x).shape, dtype=torch.float64)

    found = weight_gradients(layer_module, x, g)

    assert found.shape == (len(x), layer_module.weight.numel())
    torch.testing.assert_close(found, one_at_a_time(layer_module, x, g))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (1, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    """Vectors, sequences and images of tokens."""
    assert_same(nn.Linear(5, 4, bias=bias), torch.randn(6, *shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_hugging_face_conv1d(shape: tuple[int, ...]) -> None:
    """The weight is ``[I, O]``, and so is its gradient."""
    from transformers.pytorch_utils import Conv1D

    assert_same(Conv1D(4, 5), torch.randn(6, *shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_embedding(shape: tuple[int, ...]) -> None:
    """Rows of tokens that come several times add up; other rows get nothing."""
    assert_same(nn.Embedding(4, 3), torch.randint(0, 4, (6, *shape)))


@pytest.mark.parametrize(("layer_module", "shape"), CONVOLUTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution(layer_module: nn.Module, shape: tuple[int, ...]) -> None:
    """Stride, padding of every kind, dilation, groups, transposed or not."""
    assert_same(layer_module, torch.randn(5, *shape, dtype=torch.float64))


def test_channels_last_memory() -> None:
    """The order in memory is not the order of the axes."""
    layer_module = nn.Conv2d(3, 4, 3, padding=1)
    layer_module.weight.data = layer_module.weight.data.to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)

    assert_same(layer_module, x.to(memory_format=torch.channels_last))


def test_gradient_that_is_expanded() -> None:
    """A gradient of a mean has no memory of its own for each position."""
    layer_module = nn.Conv2d(3, 4, 3).double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    g = torch.randn(5, 4, 1, 1, dtype=torch.float64).expand(5, 4, 4, 4)

    found = weight_gradients(layer_module, x, g)

    torch.testing.assert_close(found, one_at_a_time(layer_module, x, g))


@pytest.mark.parametrize("batch", [1, 4])
def test_sum_over_examples_is_the_ordinary_gradient(batch: int) -> None:
    """As a relation: the rows add up to what ``backward`` gives."""
    layer_module = nn.Conv2d(3, 4, 3, padding=1).double()
    x = torch.randn(batch, 3, 5, 5, dtype=torch.float64)
    output = layer_module(x)
    g = torch.randn_like(output)
    output.backward(g)

    found = weight_gradients(layer_module, x, g)

    assert layer_module.weight.grad is not None
    torch.testing.assert_close(found.sum(dim=0), layer_module.weight.grad.flatten())


def test_sequence_first() -> None:
    """``[T, N, C]`` is split along its second axis."""
    layer_module = nn.Linear(5, 4).double()
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    g = torch.randn(7, 3, 4, dtype=torch.float64)

    found = weight_gradients(layer_module, split(x, 1), split(g, 1))

    expected = one_at_a_time(layer_module, x.transpose(0, 1), g.transpose(0, 1))
    torch.testing.assert_close(found, expected)


def test_embedding_sequence_first() -> None:
    """Ids ``[T, N]`` are split along their second axis."""
    layer_module = nn.Embedding(9, 4).double()
    ids, g = torch.randint(0, 9, (7, 3)), torch.randn(7, 3, 4, dtype=torch.float64)

    found = weight_gradients(layer_module, split(ids, 1), split(g, 1))

    torch.testing.assert_close(found, one_at_a_time(layer_module, ids.T, g.transpose(0, 1)))


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 4), (3, 4), (5, 3), (3, 3)])
def test_flattened_examples(inputs: int, outputs: int) -> None:
    """``[N T, C]``: rows of one example follow each other, whatever the number of channels.

    Three channels and three examples must not be taken for a sequence.
    """
    layer_module = nn.Linear(inputs, outputs).double()
    x = torch.randn(3 * 7, inputs, dtype=torch.float64)
    g = torch.randn(3 * 7, outputs, dtype=torch.float64)

    found = weight_gradients(layer_module, split(x, 0), split(g, 0))

    expected = one_at_a_time(layer_module, x.reshape(3, 7, inputs), g.reshape(3, 7, outputs))
    torch.testing.assert_close(found, expected)


def test_windows_of_images() -> None:
    """Windows that became examples, as in Swin, belong to the image they were cut from."""
    layer_module = nn.Conv2d(4, 2, 3).double()
    x = torch.randn(3 * 2, 4, 5, 5, dtype=torch.float64)
    g = torch.randn(3 * 2, 2, 3, 3, dtype=torch.float64)

    found = weight_gradients(layer_module, split(x, 0), split(g, 0))

    expected = one_at_a_time(layer_module, x, g).reshape(3, 2, -1).sum(dim=1)
    torch.testing.assert_close(found.reshape(3, -1), expected)


def test_batch_first_is_preferred() -> None:
    """A tensor whose first axis is the number of examples is taken as it is."""
    x = torch.randn(3, 5)

    assert by_example(x, 3, 0) is x


def test_shared_input_cannot_be_split() -> None:
    """A tensor without a share for each example is told apart."""
    assert by_example(torch.randn(7, 5), 3, 0) is None
