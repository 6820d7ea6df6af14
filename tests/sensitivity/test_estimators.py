"""What every sensitivity estimator promises, over all that are registered."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import DataError, InputError, ModelError
from mpq.network.examples import Calibration
from mpq.network.metric import KL, CosineDistance, OutputMetric, SquaredError
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator

NAMES = mpq.ESTIMATORS.names()

# Look at the weights alone, so that bad data cannot trouble them.
DATA_FREE = ("weight-error", "z-score")
# Look at what a layer reads or gives, not at what becomes of it: no gradient, no further layer.
FORWARD_ONLY = (
    "activation-entropy",
    "column-loss",
    "histogram-kl",
    "layer-input-modification",
    "layer-output",
    "orthogonality",
)
# Price the rounding of an input by that of standard normal numbers, so that they need no range.
RANGE_FREE = (
    "activation-entropy",
    "column-loss",
    "layer-input-modification",
    "orthogonality",
    "relevance",
    "zero-cost",
)
# Draw probes for the interactions only: the table is measured.
EXACT_TABLE = {"measured": "measured:interactions=true"}
# Rank layers in a unit of their own; the first one's is nats where there are classes.
OWN_UNIT = (
    "first-order",
    "activation-entropy",
    "column-loss",
    "histogram-kl",
    "layer-input-modification",
    "layer-output",
    "orthogonality",
    "relevance",
    "weight-error",
    "z-score",
    "zero-cost",
)
# Ask for the cross entropy of targets, which are classes.
NEEDING_CLASSES = (
    "first-order:labels=targets",
    "fisher:labels=targets",
    "hessian-eigenvalue:loss=cross-entropy",
    "hessian-form:loss=cross-entropy",
    "hessian-trace:matrix=hessian,loss=cross-entropy",
    "measured:score=loss",
    "output-gradient:labels=targets",
    "zero-cost:labels=targets",
    "zero-cost:proxy=grasp",
)
READING = tuple(name for name in NAMES if name not in DATA_FREE)
CHOICES = tuple(map(Precision.parse, ("w2", "w4a8", "w8a8d", "w4g4a4s", "fp8", "bf16", "fp32")))


def build(name: str, seed: int = 0) -> SensitivityEstimator:
    """The estimator, with few probes."""
    options = {
        "augmented-hessian": "augmented-hessian:num_probes=1",
        "hessian-eigenvalue": "hessian-eigenvalue:max_iterations=3",
        "hessian-trace": "hessian-trace:num_probes=1",
    }
    return mpq.ESTIMATORS.build(options.get(name, name), seed)


class Residual(nn.Module):
    """A small CNN with BatchNorm, a depthwise layer, a shortcut and in-place ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.wide = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = (y + self.norm(self.wide(y))).relu_()
        out: Tensor = self.head(self.drop(z.mean(dim=(2, 3))))
        return out


class Patches(nn.Module):
    """A vision transformer in small: patches, attention, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        out: Tensor = self.head(self.encoder(tokens)[:, 0])
        return out


def images(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Two uneven batches of 6x6 images."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 1, 6, 6, generator=generator).to(dtype) for n in (5, 3)]


def make_cnn() -> tuple[nn.Module, list[Any]]:
    """A CNN and images."""
    return Residual(), images()


def make_bfloat16() -> tuple[nn.Module, list[Any]]:
    """The same in bfloat16."""
    return Residual().to(torch.bfloat16), images(torch.bfloat16)


def make_vit() -> tuple[nn.Module, list[Any]]:
    """Attention inside ``nn.TransformerEncoder``, and images."""
    return Patches(), images()


def make_llama() -> tuple[nn.Module, list[Any]]:
    """A causal language model with tied weights, and padded sequences."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    ids = torch.randint(0, 12, (3, 5), generator=torch.Generator().manual_seed(1))
    return LlamaForCausalLM(config), [{"input_ids": ids, "attention_mask": mask, "labels": ids}]


MODELS = {make.__name__[5:]: make for make in (make_cnn, make_bfloat16, make_vit, make_llama)}


@dataclass
class Setting:
    """A model, and what ``mpq.search`` makes of it before it asks an estimator."""

    model: nn.Module
    network: Network
    data: Calibration
    quantizer: Quantizer
    candidates: Sequence[Precision]
    once: "dict[str, Watched]" = field(default_factory=dict)

    def estimate(self, name: str, seed: int = 0) -> Sensitivity:
        """What an estimator finds."""
        estimator = build(name, seed)
        return estimator.estimate(
            Estimation(self.network, self.data, self.quantizer, self.candidates)
        )

    def table(self, name: str, seed: int = 0) -> npt.NDArray[np.float64]:
        """``[L, B]`` of an estimator."""
        return self.estimate(name, seed).table.values

    def watched(self, name: str) -> "Watched":
        """The same, and all that it may have changed; estimated once for several tests."""
        if name not in self.once:
            before = Snapshot.of(self.network.module, self.model)
            found = self.estimate(name)
            after = Snapshot.of(self.network.module, self.model)
            self.once[name] = Watched(found, before, after)
        return self.once[name]


def prepare(
    model: nn.Module,
    data: list[Any],
    candidates: Sequence[Precision] = CHOICES,
    metric: OutputMetric = KL,
) -> Setting:
    """Everything that an estimator takes."""
    examples = Calibration.of(data)
    network = Network.of(model.eval(), examples, metric=metric)
    ranges = ActivationRanges.calibrate(network, examples, candidates)
    return Setting(model, network, examples, Quantizer(ranges), candidates)


def make(name: str) -> Setting:
    """One of the models above, with seeded weights."""
    torch.manual_seed(0)
    return prepare(*MODELS[name]())


@pytest.fixture(scope="module", params=MODELS)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Every model, once."""
    return make(request.param)


@pytest.fixture(scope="module")
def cnn() -> Setting:
    """The CNN."""
    return make("cnn")


@pytest.mark.parametrize("name", NAMES)
def test_table_has_a_finite_loss_for_every_cell(setting: Setting, name: str) -> None:
    """``[L, B]``, finite, at least 0, under the estimator's own name, whatever the model."""
    table = setting.watched(name).found.table

    assert table.name == name
    assert table.layers == tuple(layer.name for layer in setting.network.layers)
    assert table.precisions == CHOICES
    assert np.isfinite(table.values).all()
    assert (table.values >= 0).all()
    assert table.values.max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_original_precision_costs_nothing(setting: Setting, name: str) -> None:
    """fp32 stands for the original numbers, so that its column is exactly 0."""
    found = setting.watched(name).found.table.values

    assert (found[:, CHOICES.index(Precision.parse("fp32"))] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_bits_cost_more(cnn: Setting, name: str) -> None:
    """2 bits for every weight cost more than 8, for the sum of all layers."""
    found = cnn.watched(name).found.table.values.sum(axis=0)

    assert found[0] > found[2]


@pytest.mark.parametrize("name", NAMES)
def test_layer_on_the_grid_costs_nothing(name: str) -> None:
    """A network whose weights are already 4-bit numbers loses nothing by storing them so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for weight in (model.get_parameter("0.weight"), model.get_parameter("2.weight")):
            weight.copy_(torch.randint(-8, 8, weight.shape) * 0.0625)
            weight[:, 0] = -0.5

    found = prepare(model, [torch.randn(9, 6)], (Precision.parse("w4"), Precision.parse("w2")))

    table = found.table(name)
    assert (table[:, 0] <= 1e-9 * table[:, 1]).all()


@pytest.mark.parametrize("metric", [SquaredError(), CosineDistance()], ids=lambda m: m.name)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_need_not_be_classes(name: str, metric: OutputMetric) -> None:
    """Regression or embeddings: as for classes, in the metric's unit or in the estimator's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    setting = prepare(model, [torch.randn(9, 6), torch.randn(5, 6)], metric=metric)

    table = setting.estimate(name).table

    assert np.isfinite(table.values).all()
    assert (table.values >= 0).all()
    assert (table.values[:, CHOICES.index(Precision.parse("fp32"))] == 0).all()
    assert table.values[:, 0].sum() > table.values[:, 2].sum()
    own = "squared_output" if name == "column-loss" else "relative"
    assert table.unit == (own if name in OWN_UNIT else metric.unit)


@pytest.mark.parametrize("metric", [SquaredError(), CosineDistance()], ids=lambda m: m.name)
@pytest.mark.parametrize("text", NEEDING_CLASSES)
def test_targets_of_outputs_that_are_no_classes_are_refused(
    text: str, metric: OutputMetric
) -> None:
    """The message names the metric."""
    data = [(torch.randn(9, 6), torch.zeros(9, dtype=torch.long))]
    setting = prepare(nn.Sequential(nn.Linear(6, 3)), data, CHOICES[:1], metric)

    with pytest.raises(InputError, match=metric.name):
        setting.estimate(text)


@dataclass
class Snapshot:
    """All that an estimator must not change."""

    tensors: dict[str, Tensor]
    identities: list[int]
    flags: list[bool]
    gradients: list[bool]
    modes: list[bool]
    hooks: list[int]
    random_state: Tensor

    @classmethod
    def of(cls, *modules: nn.Module) -> "Snapshot":
        """Of several modules and the global random state."""
        parameters = [p for m in modules for p in m.parameters()]
        parts = [part for m in modules for part in m.modules()]
        tensors = {
            f"{i}.{name}": tensor.clone()
            for i, m in enumerate(modules)
            for name, tensor in m.state_dict().items()
        }
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return cls(
            tensors,
            [id(p) for p in parameters],
            [p.requires_grad for p in parameters],
            [p.grad is None for p in parameters],
            [part.training for part in parts],
            [len(part.__dict__[kind]) for part in parts for kind in kinds],
            torch.get_rng_state(),
        )


@dataclass
class Watched:
    """What an estimator found, and how it found and left the network."""

    found: Sensitivity
    before: Snapshot
    after: Snapshot


def assert_unchanged(before: Snapshot, after: Snapshot) -> None:
    """Every part is as it was."""
    assert list(after.tensors) == list(before.tensors)
    for name in before.tensors:
        assert torch.equal(after.tensors[name], before.tensors[name]), name
    for part in ("identities", "flags", "gradients", "modes", "hooks"):
        assert vars(after)[part] == vars(before)[part], part
    assert torch.equal(after.random_state, before.random_state)


@pytest.mark.parametrize("name", NAMES)
def test_network_and_model_are_left_as_found(setting: Setting, name: str) -> None:
    """Weights, requires_grad, gradients, mode, hooks and the global random state."""
    watched = setting.watched(name)

    assert_unchanged(watched.before, watched.after)
    assert all(watched.before.gradients)


@pytest.mark.parametrize("name", READING)
def test_network_is_left_as_found_after_a_failure(name: str) -> None:
    """An exception in the middle leaves no hook and no quantized weight."""
    torch.manual_seed(0)
    candidates = tuple(map(Precision.parse, ("w2", "w4a8d")))
    setting = prepare(nn.Sequential(nn.Linear(4, 3)), [torch.randn(2, 4)], candidates)
    setting.data = Calibration([torch.randn(2, 4), torch.randn(2, 5)])
    before = Snapshot.of(setting.network.module, setting.model)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        setting.table(name)

    assert_unchanged(before, Snapshot.of(setting.network.module, setting.model))


@pytest.mark.parametrize("name", NAMES)
def test_grad_mode_of_the_caller_does_not_matter(cnn: Setting, name: str) -> None:
    """Under ``torch.no_grad`` the table is the same, and the mode afterwards too."""
    expected = cnn.watched(name).found.table.values

    with torch.no_grad():
        found = cnn.table(name)
        assert not torch.is_grad_enabled()

    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_table(cnn: Setting, name: str) -> None:
    """The global random state does not matter; the seed does, where numbers are drawn."""
    torch.manual_seed(1)
    first = cnn.table(name, seed=5)
    torch.manual_seed(2)
    second, other = cnn.table(name, seed=5), cnn.table(name, seed=6)

    np.testing.assert_array_equal(first, second)
    draws = "seed" in mpq.ESTIMATORS.options(mpq.ESTIMATORS.get(name)) and name not in EXACT_TABLE
    assert draws != np.array_equal(first, other)


@pytest.mark.parametrize("name", EXACT_TABLE)
def test_same_seed_same_factor(cnn: Setting, name: str) -> None:
    """Where the seed does not matter to the table, it does to the interactions."""
    factors = []
    for seed in (5, 5, 6):
        found = cnn.estimate(EXACT_TABLE[name], seed).interactions
        assert found is not None
        factors.append(found.factor)

    np.testing.assert_array_equal(factors[0], factors[1])
    assert not np.array_equal(factors[0], factors[2])


def test_same_table_in_another_process(cnn: Setting) -> None:
    """Nothing depends on hashes, addresses or what ran before."""
    code = (
        "import importlib.util, json, sys, torch\n"
        "torch.set_num_threads(2)\n"
        "spec = importlib.util.spec_from_file_location('estimators', sys.argv[1])\n"
        "tests = importlib.util.module_from_spec(spec)\n"
        "sys.modules['estimators'] = tests\n"
        "spec.loader.exec_module(tests)\n"
        "cnn = tests.make('cnn')\n"
        "print(json.dumps({name: cnn.table(name).tolist() for name in tests.NAMES}))\n"
    )

    # Two threads that wait for each other by counting take most of the time, and no other number.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", code, __file__]

    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)

    found = json.loads(done.stdout)
    for name in NAMES:
        expected = cnn.watched(name).found.table.values
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_choices_do_not_influence_each_other(cnn: Setting, name: str) -> None:
    """A column alone, or in another order, has the same costs."""
    expected = cnn.watched(name).found.table.values

    backwards = Setting(cnn.model, cnn.network, cnn.data, cnn.quantizer, CHOICES[::-1])
    alone = Setting(cnn.model, cnn.network, cnn.data, cnn.quantizer, CHOICES[1:2])

    np.testing.assert_allclose(backwards.table(name)[:, ::-1], expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(alone.table(name), expected[:, 1:2], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in READING if name not in FORWARD_ONLY])
def test_layer_whose_output_is_not_used_costs_nothing(name: str) -> None:
    """A pooler that is computed and thrown away, as in some BERT models."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.pooler = nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.pooler(x)
            out: Tensor = self.fc(x)
            return out

    torch.manual_seed(0)
    candidates = tuple(map(Precision.parse, ("w2", "w4a4")))
    setting = prepare(Unused(), [torch.randn(5, 4)], candidates)

    found = setting.table(name)

    row = [layer.name for layer in setting.network.layers].index("pooler")
    assert (found[row] == 0).all()
    assert found.max() > 0


@pytest.mark.parametrize("name", READING)
def test_embedding_of_single_ids(name: str) -> None:
    """Tabular networks look up one id per example: ids ``[N]``."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.fc(self.table(ids))
            return out

    torch.manual_seed(0)
    candidates = tuple(map(Precision.parse, ("w2", "w4a8")))

    found = prepare(Table(), [torch.randint(0, 7, (6,))], candidates).table(name)

    assert (found > 0).all()


def diverging() -> nn.Module:
    """Finite for small inputs, NaN for large ones."""

    class Diverging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return torch.where(x[:, :1] > 100, float("nan"), y)

    return Diverging()


@pytest.mark.parametrize("name", READING)
def test_output_that_is_nan_is_a_model_error(name: str) -> None:
    """Also when only a later batch shows it."""
    setting = prepare(diverging(), [torch.randn(2, 4)], (Precision.parse("w4"),))
    setting.data = Calibration([torch.randn(2, 4), torch.full((2, 4), 1e3)])

    with pytest.raises(ModelError, match="output has values that are NaN or infinite"):
        setting.table(name)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("source", [[], lambda: iter(())], ids=["list", "function"])
def test_no_example_is_a_data_error(name: str, source: list[Any] | Callable[[], Any]) -> None:
    """An estimate from nothing is not 0 but an error."""
    setting = prepare(nn.Linear(4, 3), [torch.randn(2, 4)], (Precision.parse("w4"),))
    setting.data = Calibration(source)

    with pytest.raises(DataError, match="there are no examples"):
        setting.table(name)


@pytest.mark.parametrize("name", [name for name in READING if name not in RANGE_FREE])
def test_range_that_was_not_calibrated_is_a_model_error(name: str) -> None:
    """A static format without a range cannot be priced."""
    setting = prepare(nn.Linear(4, 3), [torch.randn(2, 4)], (Precision.parse("w4a8"),))
    setting.quantizer = Quantizer(ActivationRanges({}))

    with pytest.raises(ModelError, match="no calibrated activation range for int8"):
        setting.table(name)


@pytest.mark.parametrize("name", NAMES)
def test_estimator_is_described(name: str) -> None:
    """Every estimator has a name and one sentence for the list that users see."""
    part = mpq.ESTIMATORS.get(name)

    assert part.name == name
    assert 20 < len(part.summary) < 80
    assert part.__doc__
