"""Covered and named numbers are all there are, and what is named counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import mpq
from mpq.errors import ModelError
from mpq.network.coverage import Coverage
from mpq.network.network import Network
from mpq.workflows.setup import Prepared
from scripts.zoo_models import build, entries


class Functional(nn.Module):
    """A matrix that is used without a module, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.free = nn.Parameter(torch.randn(4, 5))
        self.scale = nn.Parameter(torch.ones(5))
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        found: Tensor = self.fc(x).relu() @ self.free.atan() * self.scale
        return found


class Tied(nn.Module):
    """An embedding whose matrix is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.embed(ids))
        return found


class Recurrent(nn.Module):
    """An LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.rnn(x)[0])
        return found


class NormedRecurrent(nn.Module):
    """An LSTM, one of whose weights is computed from a length and a direction."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = weight_norm(nn.LSTM(6, 6, batch_first=True), "weight_hh_l0")
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        found: Tensor = self.fc(self.lstm(x)[0])
        return found


class Attending(nn.Module):
    """Attention, whose three projections are computed as one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        spectral_norm(self.attention, "in_proj_weight")

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        found: Tensor = self.attention(x, x, x)[0]
        return found


class Twice(nn.Module):
    """A module of two inputs, given one twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.inner(x, x)
        return found


class FreeNorm(nn.Module):
    """A computed weight that a function uses."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 5))
        weight_norm(self, "matrix")

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = x @ self.matrix
        return found


def folded() -> nn.Module:
    """A convolution with its BatchNorm."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


class Statistics(nn.Module):
    """One buffer under two names, and a parameter that lies in another one's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        mean = torch.zeros(5)
        self.register_buffer("mean", mean)
        self.register_buffer("again", mean)
        self.bias = nn.Parameter(self.fc.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.fc(x) - self.again + self.bias
        return found


class Masked(nn.Module):
    """A layer with a large table in a buffer, and a part of one that is not stored itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.arange(40.0), persistent=False)
        self.register_buffer("mask", torch.ones(64, 64))
        self.register_buffer("ages", self.get_buffer("scratch")[1:])
        self.fc = nn.Linear(64, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.fc(x @ self.get_buffer("mask")) + self.get_buffer("ages").sum()
        return found


def normalised() -> nn.Module:
    """A weight that is computed from two parameters."""
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)))


def attention() -> nn.Module:
    """Projections that are views of one parameter."""
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "functional": (Functional, lambda: torch.randn(4, 6)),
    "tied": (Tied, lambda: torch.randint(0, 9, (4, 3))),
    "folded": (folded, lambda: torch.randn(4, 3, 8, 8)),
    "attention": (attention, lambda: torch.randn(4, 5, 8)),
    "statistics": (Statistics, lambda: torch.randn(4, 6)),
    "lstm": (Recurrent, lambda: torch.randn(4, 5, 6)),
    "weight_norm": (normalised, lambda: torch.randn(4, 6)),
    "normed lstm": (NormedRecurrent, lambda: torch.randn(4, 5, 6)),
    "normed attention": (Attending, lambda: torch.randn(4, 5, 6)),
    "normed bilinear": (
        lambda: Twice(weight_norm(nn.Bilinear(6, 6, 5))), lambda: torch.randn(4, 6)
    ),
    "normed matrix": (FreeNorm, lambda: torch.randn(4, 6)),
    "half": (lambda: nn.Linear(6, 5).bfloat16(), lambda: torch.randn(4, 6).bfloat16()),
}  # fmt: skip


def coverage_of(name: str) -> tuple[nn.Module, Coverage]:
    """A model of a case, and what of it lies in layers."""
    torch.manual_seed(0)
    make, draw = CASES[name]
    model = make().eval()
    found = Network.of(model, [draw()]).coverage
    assert found is not None
    return model, found


@pytest.mark.parametrize("name", CASES)
def test_covered_and_named_are_all_parameters_and_buffers(name: str) -> None:
    """In numbers of all, in bytes of what a checkpoint has."""
    model, found = coverage_of(name)

    # By where they lie, as two parameters may be one memory.
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}.values()
    stored = {t.data_ptr(): t for t in model.state_dict(keep_vars=True).values()}.values()
    outside = sum(item.num_elements for item in found.outside)
    outside_bytes = sum(item.num_bytes for item in found.outside if item.is_stored)
    assert found.covered_elements + outside == found.num_elements == sum(t.numel() for t in tensors)
    assert found.num_bytes == sum(t.numel() * t.element_size() for t in stored)
    assert found.covered_bytes + outside_bytes == found.num_bytes


def test_what_is_used_without_a_module_is_named_and_counted() -> None:
    """Its bytes are in every answer's weight_bytes, and a sentence says so."""
    torch.manual_seed(0)
    data = [torch.randn(8, 6)]
    task = mpq.Task(Functional().eval(), data, data, candidates=["w4", "w8"])

    result = mpq.search(task, {"weight_bytes": "1x:w4"})

    (used,) = (budget.used(result.columns) for budget in result.problem.budgets)
    assert result.coverage is not None
    assert [x.name for x in result.coverage.weights_outside] == ["free"]
    codes, scales, bias, scale, count = 6 * 4 / 2, 4 * 4, 4 * 4, 5 * 4, 3 * 8
    assert used == codes + scales + bias + 4 * 5 * 4 + scale + count  # the matrix in float32
    sentences = result.coverage.sentences
    assert "counted in weight_bytes as they are: free (33.9 %)" in sentences[1]
    assert sentences[3] == "weight_bytes has 140 bytes besides the layers' weights"
    assert sentences[4] == "computed by the model and not stored: scratch"


def masked() -> mpq.Task:
    """64 x 100 weights beside 64 x 64 numbers that no precision changes."""
    torch.manual_seed(0)
    data = [torch.randn(8, 64)]
    return mpq.Task(Masked().eval(), data, data, candidates=["w4", "w8"])


def test_a_large_buffer_is_named_and_counted() -> None:
    """It is no bias, norm or statistic; what is left of these, and the shares, are all there is."""
    found = Network.of(masked().model, [torch.randn(8, 64)]).coverage

    assert found is not None
    whole = 4 * (64 * 100 + 64 * 64 + 100 + 39)
    assert found.num_bytes == whole
    assert found.sentences[:2] == (
        f"layers hold 60.2 % of the checkpoint's {whole:,} bytes; biases, norms and statistics "
        "1.3 %",
        "buffers and vectors of more than 1 % each, not quantized and counted in weight_bytes as "
        "they are: mask (38.5 %), together 38.5 %",
    )


def test_a_stored_view_of_what_is_not_stored_counts() -> None:
    """A checkpoint has its numbers, though the module computes what they lie in."""
    model = Masked().eval()

    found = Network.of(model, [torch.randn(8, 64)]).coverage

    assert found is not None
    assert found.num_bytes == sum(t.nbytes for t in model.state_dict().values())
    assert {x.name: x.is_stored for x in found.outside}["ages"]


def test_a_limit_that_is_largely_taken_by_constants_names_them() -> None:
    """Though they are below it: fewer bits still help, and nobody would think of a buffer."""
    limit, constant = 18_000, 4 * (64 * 64 + 100 + 39)

    with pytest.raises(mpq.InfeasibleError) as found:
        mpq.search(masked(), {"weight_bytes": limit})

    said = str(found.value)
    assert f"what is not in the layers takes {constant} bytes at any precision. Not in" in said
    assert said.endswith("the largest first: mask (16,384 bytes)")  # all others are small


def test_a_budget_that_can_be_met_names_no_constants() -> None:
    """It is the other one that cannot."""
    with pytest.raises(mpq.InfeasibleError) as found:
        mpq.search(masked(), {"weight_bytes": 30_000, "effective_bits": 1})

    assert "weight_bytes: limit 30000 bytes" in str(found.value)
    assert "not in the layers" not in str(found.value).lower()


def test_layers_hold_everything_but_vectors_of_a_plain_network() -> None:
    """The projections of attention are views, a tied matrix is one, a computed one has sources."""
    for name in CASES.keys() - {"functional"}:
        assert coverage_of(name)[1].weights_outside == ()


def test_an_excluded_layer_is_named_and_counted() -> None:
    """It was the user who left it out, but it is stored all the same."""
    data = [torch.randn(4, 6)]
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()

    found = Network.of(model, data, exclude=["2"]).coverage

    assert found is not None
    assert found.weights_outside == ()
    assert [x.name for x in found.outside if x.is_left_out] == ["2.weight"]
    asked = "left out as asked, counted in weight_bytes as they are: 2.weight (28.3 %), together"
    assert found.sentences[1].startswith(asked)
    assert found.constant_bytes == 4 * (5 + 3 * 5 + 3)


def size_of_checkpoint(model: nn.Module, folder: Path) -> int:
    """Bytes of all tensors in a safetensors file of the model, which has tied weights once."""
    save_model(model, str(folder / "model.safetensors"))
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize("name", CASES)
def test_the_original_is_the_checkpoint(name: str, tmp_path: Path) -> None:
    """In the comparison, with everything that is stored; all precisions share the rest."""
    model = coverage_of(name)[0]
    data = [CASES[name][1]()]
    task = mpq.Task(model, data, data, candidates=["w4", "w8"])

    result = mpq.search(task, {"effective_bits": "1x:w8"}, sensitivity="weight-error")

    size = size_of_checkpoint(model, tmp_path)
    table = result.cost_table("weight_bytes")
    assert result.coverage is not None
    assert result.comparison("original").costs["weight_bytes"] == size == result.coverage.num_bytes
    assert table.constant == result.coverage.constant_bytes
    # One matrix is all that this network has.
    assert (table.constant == 0) == (name == "normed matrix")
    assert [result.comparison(p).costs["weight_bytes"] for p in ("w4a32", "w8a32")] == [
        table.constant + sum(column) for column in table.values.T
    ]


@pytest.mark.parametrize("name", [x for x in CASES if x != "folded" and "norm" not in x])
def test_nothing_quantized_is_the_checkpoint(name: str) -> None:
    """The rest and the layers at fp32, in the model's own dtype, whatever stays as it is."""
    model, data = coverage_of(name)[0], [CASES[name][1]()]

    prepared = Prepared.of(mpq.Task(model, data, data, candidates=["fp32", "w8"]))

    original = {layer.name: mpq.Precision.parse("fp32") for layer in prepared.network.layers}
    stored = {t.data_ptr(): t for t in model.state_dict(keep_vars=True).values()}.values()
    assert prepared.pricing.amount("weight_bytes", original) == sum(t.nbytes for t in stored)


def test_a_folded_norm_counts_as_the_bias_that_it_becomes() -> None:
    """Four numbers per channel and a counter become one number."""
    _, found = coverage_of("folded")

    outside = sum(item.num_bytes for item in found.outside if item.is_stored)
    assert outside == 4 * (4 + 4 * 4 + 5) + 8  # biases, the norm, its counter
    assert found.constant_bytes == 4 * (4 + 5)
    told = "36 bytes besides the layers' weights, 108 in the checkpoint, where what is folded into"
    assert told in found.sentences[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_layer_left_out_counts_like_one_that_is_fixed(dtype: torch.dtype) -> None:
    """At fp32, which is the model's own dtype."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype).eval()
    data = [torch.randn(8, 6, dtype=dtype)]
    rules = {"left out": mpq.Rules(exclude=["2"]), "fixed": mpq.Rules(fix={"2": "fp32"})}
    used = {}

    for name, rule in rules.items():
        task = mpq.Task(model, data, data, candidates=["w4"], rules=rule)
        result = mpq.search(task, {"weight_bytes": 10_000}, sensitivity="weight-error")
        used[name] = result.comparison("result").costs["weight_bytes"]

    assert used["left out"] == used["fixed"] == 15 + 5 * 4 + (5 + 3 * 5 + 3) * dtype.itemsize


def test_a_tied_weight_that_is_left_out_is_stored_twice() -> None:
    """Codes for the embedding, floats for the head."""
    torch.manual_seed(0)
    ids = [torch.randint(0, 9, (4, 3))]

    both, one = (Network.of(Tied().eval(), ids, exclude=out) for out in ((), ("head",)))

    assert both.constant_bytes == 4 * 9
    assert one.constant_bytes == 4 * 9 + 4 * 9 * 6
    assert one.coverage is not None
    assert "a layer shares its weight with the rest" in one.coverage.sentences[-1]


def test_a_tied_weight_in_two_precisions_is_stored_twice() -> None:
    """Without ties every layer has a tensor of its own, and its bytes."""
    ids = [torch.randint(0, 9, (4, 3))]
    fix = {"embed": "w8", "head": "w4"}
    task = mpq.Task(
        Tied().eval(), ids, ids, candidates=["w4"], rules=mpq.Rules(fix=fix, find_ties=False)
    )

    result = mpq.search(task, {"weight_bytes": 10_000}, sensitivity="weight-error")

    codes, scales, bias = 54 + 54 / 2, 2 * 4 * 9, 4 * 9
    assert result.comparison("result").costs["weight_bytes"] == codes + scales + bias
    assert result.comparison("original").costs["weight_bytes"] == 4 * 54 + bias


def test_a_limit_below_what_no_precision_changes_says_so() -> None:
    """Then neither fewer bits nor other candidates help."""
    data = [torch.randn(8, 6)]
    task = mpq.Task(Functional().eval(), data, data, candidates=["w4", "w8"])

    with pytest.raises(mpq.InfeasibleError, match="not in the layers takes 140 bytes at any prec"):
        mpq.search(task, {"weight_bytes": "100B"})


@pytest.mark.parametrize(
    "name",
    [
        "BertForMaskedLM",
        "MambaForCausalLM",
        "MixtralForCausalLM",
        "ResNetForImageClassification",
        "T5ForConditionalGeneration",
        "WhisperForConditionalGeneration",
    ],
)
def test_transformers_are_covered_or_named(name: str, tmp_path: Path) -> None:
    """All parameters and buffers, once; the size is the checkpoint's, also with tied weights."""
    pytest.importorskip("transformers")
    built = build(next(entry for entry in entries() if entry.name == name))
    tensors = {id(t): t for t in (*built.model.parameters(), *built.model.buffers())}.values()

    network = Network.of(built.model, list(built.batches))

    found = network.coverage
    assert found is not None
    named = [x for x in found.outside if x.is_stored]
    assert found.covered_elements + sum(x.num_elements for x in found.outside) == sum(
        t.numel() for t in tensors
    )
    assert found.covered_bytes + sum(x.num_bytes for x in named) == found.num_bytes
    assert found.num_bytes == size_of_checkpoint(built.model, tmp_path)
    if not network.folded:
        assert network.constant_bytes == found.num_bytes - found.covered_bytes


@pytest.mark.parametrize("fold", [True, False])
def test_a_batch_norm_that_is_folded_is_not_counted_as_it_is(fold: bool) -> None:
    """Its numbers are more than 1 % of a small network, and become the bias of the layer before."""
    parts = [
        nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(64), nn.Linear(64, 4),
    ]  # fmt: skip
    model = nn.Sequential(*parts).eval()

    network = Network.of(model, [torch.randn(4, 3, 5, 5)], fold=fold)

    assert network.coverage is not None
    told = next(x for x in network.coverage.sentences if x.startswith("buffers and vectors"))
    assert ("1.weight" in told, "5.weight" in told) == (not fold, True)
    assert ("1.weight" in network.coverage.largest_outside) is not fold


class Ensemble(nn.Module):
    """Members by ``vmap``, and a matrix that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.Parameter(torch.randn(3, 4, 6))
        self.unread = nn.Parameter(torch.randn(4, 6))
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        each = torch.func.vmap(lambda w: nn.functional.linear(x, w))(self.members)
        found: Tensor = self.last(each.relu().mean(0))
        return found


def test_a_weight_that_no_function_was_seen_to_read_is_told_so() -> None:
    """Within vmap nothing can be seen; it is named beside its share, as every weight outside."""
    data = [torch.randn(5, 6)]

    coverage = Network.of(Ensemble().eval(), data).coverage

    assert coverage is not None
    assert {x.name for x in coverage.weights_outside} == {"members", "unread"}
    assert all("no function that was seen" in x.reason for x in coverage.weights_outside)


def test_reasons_where_no_layer_is_left_are_of_weights() -> None:
    """Not of biases, and not of what was left out."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    with pytest.raises(ModelError, match="or all are excluded$"):
        Network.of(model, [torch.randn(5, 6)], exclude=["*"])
