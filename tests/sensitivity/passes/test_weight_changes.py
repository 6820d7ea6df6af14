"""Products of gradients and weight changes in tiles, against autograd and whole roundings."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from mpq.network.examples import Batch, Calibration
from mpq.network.network import Network
from mpq.network.signs import ExampleSigns
from mpq.network.weight_layout import layout_of
from mpq.quantization import rounding
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, OutputSketch
from mpq.sensitivity import output_sketch as sketch_module
from mpq.sensitivity.passes import per_example, weight_changes
from mpq.sensitivity.passes.backward_pass import read_gradients

CANDIDATES = tuple(map(Precision.parse, ("w2", "w4g16", "w3z", "fp32", "wnf4", "w8t")))
TOKENS, WIDTH = 40, 24


@pytest.fixture(autouse=True)
def _tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of several tiles each, and examples in several steps."""
    torch.manual_seed(0)
    monkeypatch.setattr(rounding, "NUMBERS_AT_ONCE", 7 * WIDTH)
    monkeypatch.setattr(weight_changes, "WORK_ELEMENTS", 2 * 7 * WIDTH)


class Language(nn.Module):
    """Embedding, a body, and a head that may be the embedding's parameter."""

    def __init__(self, is_tied: bool, body: nn.Module) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH, padding_idx=3)
        self.body = body
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        if is_tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every position."""
        found: Tensor = self.head(torch.tanh(self.body(self.table(ids))))
        return found


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Of its own answer."""
        found: Tensor = self.layer(torch.tanh(self.layer(x)))
        return found


def conv1d() -> nn.Module:
    """Hugging Face's, whose weight is stored ``[I, O]``."""
    layer = pytest.importorskip("transformers").pytorch_utils.Conv1D(WIDTH, WIDTH)
    nn.init.normal_(layer.weight)
    found: nn.Module = layer
    return found


def images() -> nn.Module:
    """Convolutions, of which one is transposed."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 6, 2, groups=2), nn.Flatten(),
        nn.Linear(6 * 5 * 5, 5),
    )  # fmt: skip


def ids() -> Tensor:
    """Five sequences in which tokens come several times, the padding too."""
    return torch.randint(0, 9, (5, 6))


MODELS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: Language(False, nn.Linear(WIDTH, WIDTH)), ids),
    "tied": (lambda: Language(True, nn.Linear(WIDTH, WIDTH)), ids),
    "Conv1D": (lambda: Language(False, conv1d()), ids),
    "twice": (lambda: Language(True, Twice()), ids),
    "images": (images, lambda: torch.randn(5, 3, 6, 6)),
}


def estimation(model: nn.Module, batches: list[Tensor], shared: bool = True) -> Estimation:
    """Of all candidates."""
    data = Calibration(batches)
    network = Network.of(model.eval(), data)
    also = network.shared_weights if shared else {}
    return Estimation(network, data, Quantizer(ActivationRanges({}), shared=also), CANDIDATES)


def plain_table(on: Estimation, seed: int) -> npt.NDArray[np.float64]:
    """``[L, B]`` by the formula: example by example, layer by layer, whole weights in float64."""
    network, total, examples = on.network, np.zeros(on.shape), 0
    for batch in on.data:
        outputs = network.outputs(batch)
        weights = torch.full(outputs.shape[:2], 1 / outputs.shape[1], dtype=torch.float64)
        probe = network.metric.probe(outputs, weights, ExampleSigns.of(seed, 0, batch))
        for n in range(batch.size):
            single = Calibration([batch.args[0][n : n + 1]]).first_of_several()
            for row, name in enumerate(on.names):
                total[row] += row_of(on, name, single, probe[n]) ** 2
        examples += batch.size
    return np.asarray(total / 2 / examples)


def row_of(on: Estimation, name: str, single: Any, probe: Tensor) -> npt.NDArray[np.float64]:
    """``[B]`` of one example: the gradient as this layer alone sees its weight."""
    layer_module, weight = on.network.layer_module(name), on.network.weight(name)
    alone = nn.Parameter(weight.clone())
    before, layer_module.weight = layer_module.weight, alone
    try:
        scalar = (on.network.outputs(single)[0] * probe).sum()
        (gradient,) = torch.autograd.grad(scalar, alone)
    finally:
        layer_module.weight = before
    if getattr(layer_module, "padding_idx", None) is not None:
        # Torch leaves the row out for training; rounded it is read like any other.
        return row_of_table(on, name, single, probe)
    changes = [on.rounded_weight(name, p.weight).double() - weight.double() for p in on.candidates]
    return np.array([float((gradient.double() * change).sum()) for change in changes])


def row_of_table(on: Estimation, name: str, single: Any, probe: Tensor) -> npt.NDArray[np.float64]:
    """The same without a row of padding."""
    layer_module = on.network.layer_module(name)
    index, layer_module.padding_idx = layer_module.padding_idx, None  # type: ignore[assignment]
    try:
        return row_of(on, name, single, probe)
    finally:
        layer_module.padding_idx = index


@pytest.mark.parametrize("name", MODELS)
def test_tiles_give_the_plain_formula(name: str) -> None:
    """To 1e-5, in two batches of different sizes, for every layer and format."""
    make, data = MODELS[name]
    x = data()
    on = estimation(make(), [x[:3], x[3:]])

    found = OutputSketch(num_probes=1, temperature=1.0, seed=5).estimate(on).table.values

    np.testing.assert_allclose(found, plain_table(on, 5), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_groups_add_their_examples_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last group has what is left over; squares are of sums."""
    make, data = MODELS[name]
    on = estimation(make(), [data()])
    rows = OutputSketch(num_probes=1, seed=1, shrinkage=0.0)
    single = rows.estimate(on).interactions
    monkeypatch.setattr(sketch_module, "_MIN_ROWS", 1)

    grouped = rows.estimate(on).interactions

    assert single is not None
    assert grouped is not None
    assert (len(single.factor), len(grouped.factor)) == (5, 2)
    sums = np.stack([single.factor[:4].sum(axis=0), single.factor[4]])
    # Each factor is scaled so that the mean over its own rows is that over the examples.
    np.testing.assert_allclose(grouped.factor, sums * np.sqrt(2 / 5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision(dtype: torch.dtype) -> None:
    """Near what float32 gives with the same numbers, as far as its activations are near."""
    torch.manual_seed(3)
    model = Language(True, nn.Linear(WIDTH, WIDTH)).to(dtype)
    x = ids()
    half = OutputSketch(num_probes=1, seed=2).estimate(estimation(model, [x])).table.values
    whole = OutputSketch(num_probes=1, seed=2).estimate(estimation(model.float(), [x]))

    # Eight bits are beside what bfloat16 itself rounds.
    np.testing.assert_allclose(half, whole.table.values, rtol=0.2, atol=1e-4)


def test_a_shared_range_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tied head and its embedding, with the same numbers as if for each."""
    asked: list[int] = []

    def recording(rows: Tensor, *rest: Any) -> Any:
        asked.append(len(rows))
        return made(rows, *rest)

    made = rounding.weight_grid
    monkeypatch.setattr("mpq.quantization.quantizer.weight_grid", recording)
    model, x = Language(True, nn.Linear(WIDTH, WIDTH)), ids()

    apart, together = (
        OutputSketch().estimate(estimation(model, [x], shared)).table.values
        for shared in (False, True)
    )

    with_scale = sum(p.weight.number.needs_scale for p in CANDIDATES)
    assert asked.count(TOKENS) == (2 + 1) * with_scale
    np.testing.assert_array_equal(apart, together)


def test_only_rows_that_are_read_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an embedding of which five sequences read nine rows at most."""
    seen: list[int] = []
    rounded = Quantizer.rounded_rows

    def recording(own: Quantizer, name: str, rows: Tensor, *rest: Any, **more: Any) -> Tensor:
        found = rounded(own, name, rows, *rest, **more)
        if name == "table":
            seen.append(len(found))
        return found

    monkeypatch.setattr(Quantizer, "rounded_rows", recording)

    OutputSketch(num_probes=1).estimate(estimation(Language(False, nn.Identity()), [ids()]))

    assert seen
    assert max(seen) <= 9


@pytest.mark.parametrize("name", ["Conv1D", "images"])
def test_squares_are_those_of_the_whole_change(name: str) -> None:
    """With and without counts in the weight's own layout, in float64."""
    make, data = MODELS[name]
    on = estimation(make(), [data()])
    for layer in on.names:
        changes = weight_changes.WeightChanges.of_original(on, layer)
        counts = torch.rand(on.network.weight(layer).numel())
        plain, counted = changes.squares(), changes.squares(counts)

        for column, wanted in enumerate(on.weights.formats):
            change = on.rounded_weight(layer, wanted) - on.network.weight(layer)
            to_rows = layout_of(on.network.layer_module(layer)).to_rows
            squares, counting = change.double() ** 2, counts.double().view(change.shape)
            by_channel = to_rows(squares).sum(dim=1), to_rows(squares * counting).sum(dim=1)
            torch.testing.assert_close(plain[:, column], by_channel[0])
            torch.testing.assert_close(counted[:, column], by_channel[1])


def test_codes_that_were_found_with_data_are_read_in_tiles() -> None:
    """As whole: also some rows of an embedding."""
    on = estimation(Language(False, nn.Identity()), [ids()])
    rows, wanted = on.network.weight("table"), CANDIDATES[1].weight
    codes = on.quantizer.codes("table", on.network.layer_module("table"), wanted)
    kept = Quantizer(ActivationRanges({}), stored={("table", wanted): codes.stored(rows)})

    whole = kept.weight("table", on.network.layer_module("table"), wanted)

    assert torch.equal(whole, codes.numbers())
    for some in (slice(3, 9), torch.tensor([7, 2, 39])):
        assert torch.equal(kept.rounded_rows("table", rows, wanted, some), whole[some])


def test_nothing_of_a_large_weight_stays_but_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither changes of all formats nor a dense gradient of the embedding for each example."""
    sizes: list[int] = []
    made = weight_changes.WeightChanges.empty

    def recording(own: weight_changes.WeightChanges, num_rows: int) -> Tensor:
        sizes.append(num_rows)
        return made(own, num_rows)

    def refused(*_: Any) -> Tensor:
        raise AssertionError("a dense gradient of an embedding")

    monkeypatch.setattr(weight_changes.WeightChanges, "empty", recording)
    monkeypatch.setattr(per_example, "_embedding", refused)

    OutputSketch().estimate(estimation(Language(True, Twice()), [ids()]))

    assert max(sizes) <= 9 < TOKENS


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("held_bytes", [5_000, 2**28])
def test_probes_that_wait_for_each_other_give_what_each_gives_alone(
    name: str, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever memory their gradients may take, and after passes of their own."""
    make, read = MODELS[name]
    asked = estimation(make(), [read(), read()[:2]])
    monkeypatch.setattr(sketch_module, "_HELD_BYTES", held_bytes)
    together = OutputSketch(num_probes=3).estimate(asked)
    monkeypatch.setattr(sketch_module, "_HELD_BYTES", 0)
    monkeypatch.setattr(sketch_module, "read_gradients", _one_by_one)

    alone = OutputSketch(num_probes=3).estimate(asked)

    np.testing.assert_allclose(together.table.values, alone.table.values, rtol=1e-4)
    assert together.interactions is not None
    assert alone.interactions is not None
    np.testing.assert_allclose(
        together.interactions.factor, alone.interactions.factor, rtol=1e-3, atol=1e-6
    )


def test_probes_share_a_forward_pass_and_the_rounding_of_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one batch."""
    model = Language(False, nn.Linear(WIDTH, WIDTH))
    asked = estimation(model, [torch.randint(TOKENS, (3, 5))])
    forwards, roundings = list[int](), list[str]()
    of = weight_changes.WeightChanges.of

    def counted(self: weight_changes.WeightChanges, *given: Any) -> None:
        roundings.append(self.name)
        of(self, *given)

    monkeypatch.setattr(weight_changes.WeightChanges, "of", counted)
    asked.network.module.register_forward_hook(lambda *_: forwards.append(1))

    OutputSketch(num_probes=5).estimate(asked)

    assert len(forwards) == 1
    tiles = len(list(rounding.row_tiles(asked.network.weight("head"))))
    assert roundings.count("head") == tiles


def _one_by_one(network: Network, batch: Batch, reader: Any, *probes: Any) -> None:
    for probe in probes:
        read_gradients(network, batch, reader, probe)
