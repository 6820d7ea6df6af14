"""Several precisions in one pass over copies of a batch, against one pass for each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.network.examples import Batch, Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.prefix import reusing
from mpq.sensitivity.passes.tiles import Tiling, tileable

CHOICES = tuple(map(Precision.parse, ("w2", "w3a4d", "w4a8d", "w32a3d", "w8a16")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Sequences(nn.Module):
    """Positions come first inside; one layer reads rows, one is shared, one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(4, 6)
        self.first, self.rows, self.twice = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:  # [N, 4, 5]
        y = self.first(x.transpose(0, 1))  # [4, N, 6]
        y = self.rows(y.flatten(0, 1)).view_as(y).tanh().transpose(0, 1)  # [N, 4, 6]
        y = y + self.place(torch.arange(4))
        out: Tensor = self.head(self.twice(self.twice(y).tanh()))
        return out


class Mixing(nn.Module):
    """Divides by what only the whole batch has: another perturbed copy would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.head(y / y.abs().max())
        return out


class Fixed(nn.Module):
    """Takes batches of six."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.first(x).view(6, 7))
        return out


class Routed(nn.Module):
    """Some examples take one layer, the others another; then each takes the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.left, self.right = nn.Linear(5, 2), nn.Linear(5, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        is_left = self.router(x).argmax(dim=1) == 0
        y = torch.zeros_like(x)
        y[is_left] = self.left(x[is_left])
        y[~is_left] = self.right(x[~is_left])
        again = y[:, 0] > 0
        y[again] = self.right(y[again])
        out: Tensor = self.head(y)
        return out


def make_cnn() -> nn.Module:
    """Convolutions, one of them grouped."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(True),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def make_gpt2() -> nn.Module:
    """Position embeddings that the examples share."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def make(model: nn.Module, data: Any) -> tuple[Network, Quantizer, Batch]:
    """A network, its quantizer and its batch."""
    network = Network.of(model.eval(), [data])
    return network, Quantizer(ActivationRanges({})), Calibration([data]).first()


IMAGES = torch.randn(5, 1, 5, 5, generator=torch.Generator().manual_seed(1))
VECTORS = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
SEQUENCES = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(3))
TOKENS = {"input_ids": torch.arange(15).reshape(3, 5) % 12}


@pytest.mark.parametrize(
    ("make_model", "data", "axes"),
    [
        (make_cnn, IMAGES, {"0": 0, "2": 0, "4": 0}),
        (Sequences, SEQUENCES, {"first": 1, "twice": 0, "head": 0}),
        (Routed, VECTORS, {"router": 0, "left": 0, "head": 0}),
        (Mixing, VECTORS, {}),
        (Fixed, VECTORS, {}),
    ],
)
def test_layers_that_can_be_tiled(
    make_model: Callable[[], nn.Module], data: Any, axes: dict[str, int]
) -> None:
    """Not those that read rows in another order, that are shared, or whose rows may vary."""
    network, quantizer, batch = make(make_model(), data)

    found = tileable(
        Estimation(network, Calibration([batch]), quantizer, CHOICES[:3]), batch, CHOICES[:3]
    )

    assert found == axes


def test_position_embedding_is_not_tiled() -> None:
    """Everything else in a language model is."""
    network, quantizer, batch = make(make_gpt2(), TOKENS)

    found = tileable(
        Estimation(network, Calibration([batch]), quantizer, CHOICES[:3]), batch, CHOICES[:3]
    )

    others = {layer.name for layer in network.layers} - {"transformer.wpe"}
    assert found == dict.fromkeys(others, 0)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("make_model", "data"),
    [
        (make_cnn, IMAGES),
        (Sequences, SEQUENCES),
        (Routed, VECTORS),
        (Mixing, VECTORS),
        (Fixed, VECTORS),
        (make_gpt2, TOKENS),
    ],
)
def test_cells_are_what_whole_passes_give(
    make_model: Callable[[], nn.Module], data: Any, batched: bool
) -> None:
    """Every layer once, in every precision; the original beside it."""
    network, quantizer, batch = make(make_model(), data)
    with torch.no_grad():
        original = network.outputs(batch)
    expected = {}
    for layer in network.layers:
        for candidate in CHOICES:
            with torch.no_grad(), quantized(network, {layer.name: candidate}, quantizer):
                expected[layer.name, candidate] = network.outputs(batch)

    found = {}
    with reusing(network) as reuse:
        for tile in Tiling(
            Estimation(network, Calibration([batch]), quantizer, CHOICES), reuse, batched
        ).tiles(batch):
            recording = reuse.record(tile.batch)
            for name in reversed(tile.axes):
                for cell in tile.cells(recording, recording.outputs, name, CHOICES):
                    assert (name, cell.precision) not in found
                    torch.testing.assert_close(cell.original, original, rtol=1e-5, atol=1e-6)
                    found[name, cell.precision] = cell.changed

    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)


def test_passes_are_evenly_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five precisions where four copies fit: three and two, not four and one."""
    network, quantizer, batch = make(make_cnn(), IMAGES)
    written = sum(layer.output_elements for layer in network.layers) * batch.size
    monkeypatch.setattr("mpq.sensitivity.passes.tiles._TILE_ELEMENTS", 4 * written + 1)

    with reusing(network) as reuse:
        tiles = Tiling(
            Estimation(network, Calibration([batch]), quantizer, CHOICES), reuse, batched=True
        ).tiles(batch)

    assert [(tile.copies, tile.batch.size) for tile in tiles] == [(3, 15)]


def test_large_batch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two copies are too large, layers are tried one by one."""
    network, quantizer, batch = make(make_cnn(), IMAGES)
    monkeypatch.setattr("mpq.sensitivity.passes.tiles._TILE_ELEMENTS", 1)

    with reusing(network) as reuse:
        tiles = Tiling(
            Estimation(network, Calibration([batch]), quantizer, CHOICES), reuse, batched=True
        ).tiles(batch)

    assert [tile.copies for tile in tiles] == [1]
    assert tiles[0].batch is batch


def test_copies_hold_the_batch_one_behind_the_other() -> None:
    """What has the examples along its first axis is repeated; masks of positions are not."""
    x, mask = torch.randn(3, 2), torch.ones(2, 2)
    batch = Batch((x,), {"mask": mask, "scale": torch.tensor(2.0)}, torch.arange(3))

    found = batch.repeated(2)

    assert found.size == 6
    assert torch.equal(found.args[0], torch.cat([x, x]))
    assert torch.equal(found.kwargs["mask"], mask)
    assert found.targets is not None
    assert found.targets.tolist() == [0, 1, 2, 0, 1, 2]
