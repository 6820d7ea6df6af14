"""Layers that are called in an unusual way, with every estimator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import ESTIMATORS, Calibration, Precision
from mpq.network.modules import share_parameters, weight_of
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from tests.blind import examples

CANDIDATES = tuple(map(Precision.parse, ("w4", "w8", "fp32")))
# In nats, each with enough probes to be near its expectation.
PREDICTING = (
    "sketch:num_probes=16",
    "fisher",
    "hessian-form",
    "hessian-trace:num_probes=8",
    "hessian-trace:matrix=hessian,num_probes=16",
    "output-gradient",
)


def asked(model: nn.Module, data: Sequence[Any]) -> Estimation:
    """The question of a network, weights only."""
    network, calibration = Network.of(model.eval(), data), Calibration.of(data)
    ranges = ActivationRanges.calibrate(network, calibration, CANDIDATES)
    return Estimation(network, calibration, Quantizer(ranges), CANDIDATES)


def row(on: Estimation, name: str, layer: str) -> Any:
    """``[B]`` of a layer."""
    found = ESTIMATORS.build(name, 0).estimate(on).table.values
    return found[on.names.index(layer)]


class Upsampled(nn.Module):
    """A transposed convolution that is told the size of its output.

    Args:
        size: What it is told.
        by_name: Whether as ``output_size=``.
    """

    def __init__(self, size: list[int], by_name: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size, self.by_name = size, by_name
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * size[0] * size[1], 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.relu(self.a(x))
        y = self.up(hidden, output_size=self.size) if self.by_name else self.up(hidden, self.size)
        found: Tensor = self.head(torch.relu(y).flatten(1))
        return found


def upsampled(size: list[int], by_name: bool) -> Estimation:
    """The question of such a network."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(16, 1, 6, 6, generator=generator) for _ in range(2)]
    return asked(Upsampled(size, by_name), data)


@pytest.mark.parametrize(("size", "by_name"), [([12, 12], True), ([11, 12], False)])
@pytest.mark.parametrize("name", PREDICTING)
def test_the_output_size_of_a_transposed_convolution(
    name: str, size: list[int], by_name: bool
) -> None:
    """Predictions agree with the measurement of that layer; those that need no cross terms too."""
    on = upsampled(size, by_name)

    found, measured = row(on, name, "up"), row(on, "measured", "up")

    # The trace and the Fisher diagonal leave products of weights out, and this layer's are alike.
    assert found[:2] == pytest.approx(measured[:2], rel=0.3 if "sketch" in name else 3)
    assert (found[:2] > measured[:2] / 12).all()


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_every_estimator_takes_an_output_size(name: str) -> None:
    """No layer is 0, none is missing."""
    found = ESTIMATORS.build(name, 0).estimate(upsampled([12, 12], by_name=True)).table.values

    assert (found[:, :2] > 0).all()


class OneToken(nn.Module):
    """An expert that a single row of all data is sent to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.expert, self.c = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.relu(self.a(x))
        sent = (x[:, 0] >= 3.0).nonzero().flatten()
        if len(sent):
            hidden = hidden.index_add(0, sent, self.expert(hidden[sent]))
        found: Tensor = self.c(torch.relu(hidden))
        return found


def one_token() -> Estimation:
    """It is in the second batch."""
    data = [batch.clamp(-2.9, 2.9) for batch in examples()]
    data[1][5, 0] = 3.0
    return asked(OneToken(), data)


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_every_estimator_takes_an_expert_with_one_row(name: str) -> None:
    """Such an expert loses something, and the estimate says what."""
    found = row(one_token(), name, "expert")

    assert (found[:2] > 0).all()


@pytest.mark.parametrize("name", ["sketch:num_probes=16", "hessian-form"])
def test_an_expert_with_one_row_is_as_dear_as_measured(name: str) -> None:
    """Its loss counts for one example among all."""
    on = one_token()

    found, measured = row(on, name, "expert"), row(on, "measured", "expert")

    np.testing.assert_allclose(found[:2], measured[:2], rtol=0.5)


class Words(nn.Module):
    """The mean of some words' rows.

    Args:
        table: The embedding.
    """

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = table, nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        rows = self.table(ids)
        found: Tensor = self.head(rows if rows.ndim == 2 else rows.mean(dim=1))
        return found


def words() -> list[Tensor]:
    """Two of six are padding, word 0; word 19 never occurs."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randint(0, 19, (8, 6), generator=generator) for _ in range(4)]
    for ids in data:
        ids[:, 4:] = 0
    return data


@pytest.mark.parametrize("name", ["sketch:num_probes=16", "hessian-form"])
def test_a_padding_row_that_is_no_zero_counts(name: str) -> None:
    """It is rounded and read as any other; for training alone torch gives it no gradient."""
    torch.manual_seed(1)
    table = nn.Embedding(20, 8, padding_idx=0)
    with torch.no_grad():
        table.weight[0] = torch.randn(8) * 2
    on = asked(Words(table), words())

    found, measured = row(on, name, "table"), row(on, "measured", "table")

    np.testing.assert_allclose(found[:2], measured[:2], rtol=0.25)


@pytest.mark.parametrize("name", ["hessian-form", "hessian-trace:matrix=hessian", "zero-cost"])
def test_padding_changes_no_estimate(name: str) -> None:
    """With and without ``padding_idx`` the network computes the same."""
    plain, padded = nn.Embedding(20, 8), nn.Embedding(20, 8, padding_idx=0)
    padded.load_state_dict(plain.state_dict())

    rows = [row(asked(Words(table), words()), name, "table") for table in (plain, padded)]

    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-6)


def table_with_bounded_rows(kind: type[nn.Embedding | nn.EmbeddingBag]) -> nn.Module:
    """Most rows are longer than 1."""
    torch.manual_seed(1)
    return kind(20, 8, max_norm=1.0)


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_rows_that_torch_scales_are_left_as_found(name: str) -> None:
    """Bit for bit, though every forward pass writes the table."""
    model = Words(table_with_bounded_rows(nn.Embedding))
    before = {key: value.clone() for key, value in model.state_dict().items()}

    ESTIMATORS.build(name, 0).estimate(asked(model, words()))

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.table.max_norm == 1.0


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_search_leaves_them_too(kind: type[nn.Embedding | nn.EmbeddingBag]) -> None:
    """Searched, measured and quantized; and what is quantized computes what was searched."""
    model = Words(table_with_bounded_rows(kind)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    result = mpq.search(
        mpq.Task(model, words(), candidates=("w4", "w8", "fp32")), ["effective_bits=10"]
    )
    quantized = mpq.quantize(model, result.assignment)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(name.startswith("table") for name in result.assignment.precisions)
    ids = words()[0]
    torch.testing.assert_close(quantized(ids), model(ids), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_the_copy_computes_what_the_table_computes(
    kind: type[nn.Embedding | nn.EmbeddingBag],
) -> None:
    """The rows are scaled once, by torch's own function."""
    model = Words(table_with_bounded_rows(kind)).eval()
    ids = words()[0]

    copied = share_parameters(model)

    assert torch.equal(copied(ids), model(ids))


@pytest.mark.parametrize("name", ["sketch:num_probes=16", "hessian-form"])
def test_the_estimate_is_of_the_rows_as_they_are_read(name: str) -> None:
    """Rounding errors are those of the scaled rows."""
    on = asked(Words(table_with_bounded_rows(nn.Embedding)), words())

    found, measured = row(on, name, "table"), row(on, "measured", "table")

    np.testing.assert_allclose(found[:2], measured[:2], rtol=0.25)


def test_a_table_that_another_module_reads_is_copied_and_not_scaled() -> None:
    """Its other reader meets the rows as they are, until they are looked up."""
    model = Words(table_with_bounded_rows(nn.Embedding)).eval()
    model.output = nn.Linear(8, 20, bias=False)
    model.output.weight = weight_of(model.table)
    before = weight_of(model.table).detach().clone()

    copied = share_parameters(model)
    copied(words()[0])

    assert torch.equal(weight_of(model.table), before)
    found = (weight_of(copied.get_submodule(name)) for name in ("table", "output"))
    assert len(set(map(id, found))) == 1
