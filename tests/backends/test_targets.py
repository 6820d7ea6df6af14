"""What every deployment target promises, and what a search for one chooses from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.backends import BACKENDS, Target, target_of
from mpq.backends.compressed_tensors import CompressedTensors
from mpq.backends.hugging_face import FolderTarget
from mpq.backends.recipes._base import Recipe
from mpq.backends.target import LARGEST, MEDIAN, MEDIAN_OF_ROUNDED
from mpq.cli.__main__ import app
from mpq.errors import InfeasibleError, InputError, PrecisionError
from mpq.network.layer import Layer
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import scale_type_of
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.workflows.shippable import Shippable

TARGETS = [name for name in BACKENDS.names() if issubclass(BACKENDS.get(name), Target)]
KINDS = ["linear", "conv2d", "embedding"]
SPELLINGS = [
    "w2a32", "w3a32", "w4a32", "w4a16", "w5a32", "w6a32", "w7a32", "w8a32", "w4za32", "w3g32a32",
    "w4g32a32", "w4g64a32", "w4g128a32", "w2g256a32", "w8a8", "w8a8s", "w8a8d", "w8a8sd", "w4a8d",
    "fp8", "wfp8a32", "fp16", "bf16", "wfp4a32", "w4ta32", "wmxfp4a32", "wmxfp8a32", "wnvfp4a32",
    "wmxfp4a16", "wmxfp8a8d", "wnvfp4afp8", "w8aint16", "w4aint16s", "w8aint16sd", "wint16a32",
    "wint16zg32a8", "int16", "w12a32", "w8a12", "w10zg32a9d", "we3m2a32", "we2m3g32a8d", "e3m0",
    "wternarya32", "wbinaryg32a16", "wnf4g64a32", "w4g32sfp16a32", "w4g32sdqa32", "w4sfp8a8d",
    "wmxint8a32", "wmxfp6_e2m3a8d", "w4g32+s1%a16", "w8+r2a8",
]  # fmt: skip


@pytest.fixture
def any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """compressed-tensors takes networks that are none of transformers, as far as a search goes."""
    monkeypatch.setattr(CompressedTensors, "check_network", lambda *_: None)


def layer(name: str, kind: str, num_outputs: int, num_inputs: int) -> Layer:
    """A layer of which only its kind and shape matter."""
    shape = (num_outputs, num_inputs, 1, 1) if kind == "conv2d" else (num_outputs, num_inputs)
    return Layer(name, kind, shape, num_outputs, (num_inputs,), (num_outputs,), 1, 1, 1)


PARENTS = ["attn.", "mlp.", "moe.experts."]
PARTS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "fc"]


@st.composite
def networks(draw: Any) -> list[Layer]:
    """Layers of all kinds; rows of any length."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
    sizes = st.sampled_from([8, 30, 32, 64, 96, 128, 256, 512])
    names = [
        f"{draw(st.sampled_from(PARENTS))}{i % 2}.{draw(st.sampled_from(PARTS))}"
        for i in range(len(kinds))
    ]
    return [
        layer(name, kind, draw(sizes), draw(sizes))
        for name, kind in zip(dict.fromkeys(names), kinds, strict=False)
    ]


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(layers=networks(), data=st.data())
def test_a_search_chooses_what_the_exporter_accepts(
    name: str, layers: list[Layer], data: st.DataObject
) -> None:
    """Always: whatever a layer may take after the target was asked, its export takes as well."""
    target = BACKENDS.build(name)
    assert isinstance(target, Target)
    if isinstance(target, FolderTarget):  # what a network in half precision may have differs
        target = replace(target, dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    spelled = data.draw(st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=8, unique=True))
    wanted = dict.fromkeys((x.name for x in layers), tuple(map(Precision.parse, spelled)))
    tie = data.draw(st.lists(st.sampled_from([x.name for x in layers]), max_size=3, unique=True))
    try:
        found = Shippable.of(target, layers, [tie] if len(tie) > 1 else [], wanted, {})
    except PrecisionError:  # none of the candidates in any layer
        return

    chosen = {x.name: data.draw(st.sampled_from(found.allowed[x.name])) for x in layers}
    # As a solver does it: one precision for all layers of a tie.
    for group in found.ties:
        chosen |= dict.fromkeys(group, chosen[group[0]])
    assigned = [AssignedLayer(x.name, x.kind, x.weight_shape, chosen[x.name]) for x in layers]
    target.check(assigned)
    for each, same in zip(layers, assigned, strict=True):
        if chosen[each.name] != ORIGINAL:
            # Both are asked for bytes: the search by its layer, the export by the assigned one.
            assert target.stored_bits(each, chosen[each.name]) == target.stored_bits(
                same, chosen[each.name]
            )
    assert all(found.allowed[name] == (ORIGINAL,) for name in found.unshipped)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_what_it_is(name: str) -> None:
    """By the command line, with candidates that it can hold in some layer."""
    answer = CliRunner().invoke(app, ["targets", "--show", name, "--json"])

    told = json.loads(answer.stdout)
    assert answer.exit_code == 0
    assert all(told[key] for key in ("readers", "holds", "candidates"))
    target = BACKENDS.build(name)
    assert isinstance(target, Target)
    assert bool(told["extra"]) == bool(target.packages)
    large = layer("large", "linear", 512, 512)
    for spelling in told["candidates"]:
        assert target.refusal(large, Precision.parse(spelling)) == ""
    listed = CliRunner().invoke(app, ["targets", "--json"])
    assert [row["name"] for row in json.loads(listed.stdout)] == TARGETS


SIXTEEN = {
    "onnx-qdq": {"w8aint16", "w4aint16", "w8aint16s", "w4g32aint16"},
    "litert": {"w8aint16s"},
}
"""Target to what it takes of 16-bit integers in linear layers and convolutions; others: nothing."""


HOLDING = [n for n in BACKENDS.names() if isinstance(BACKENDS.build(n), Target | Recipe)]
"""Targets and recipes, which hold some precisions and refuse others."""


def why_not(name: str, kind: str, precision: Precision) -> str:
    """What a target or a recipe says to a layer of 64 rows of 256 weights; empty: it holds it."""
    target, shape = BACKENDS.build(name), layer("layer", kind, 64, 256)
    if isinstance(target, Target):
        return target.why_not(shape, precision, None)
    assert isinstance(target, Recipe)
    return target.why_not(AssignedLayer("layer", kind, shape.weight_shape, precision))


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("name", HOLDING)
def test_integers_of_16_bits_are_held_where_they_were_run(name: str, kind: str) -> None:
    """Of every target, and of recipes: by a table, before anything is written."""
    asked = ["w8aint16", "w4aint16", "w8aint16s", "w8aint16d", "w4g32aint16", "wint16a32", "int16"]

    held = {x for x in asked if not why_not(name, kind, Precision.parse(x))}

    assert held == SIXTEEN.get(name, set())


HELD_SOMEWHERE = {f"int{bits}" for bits in (*range(2, 9), 16)} | {
    "fp4_e2m1", "fp8_e4m3", "fp8_e5m2", "mxfp4", "mxfp8", "nvfp4", "bf16", "fp16", "fp32",
}  # fmt: skip
SIMULATED = [name for name in NUMBER_FORMATS.keys() - HELD_SOMEWHERE if name != "fp6_toy"]
"""Formats that no file of a target was run with."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOLDING)
def test_formats_that_were_run_nowhere_are_held_nowhere(name: str, kind: str) -> None:
    """As weights or as inputs, whatever shares a scale: a search for a target leaves them out."""
    assert len(SIMULATED) > 20
    weights = [f"w{n}{more}a32" for n in SIMULATED for more in ("", "t", "g32")]
    inputs = [f"w8a{n}{more}" for n in SIMULATED for more in ("", "s", "d", "sd")]
    for spelling in (*weights, *inputs):
        try:
            precision = Precision.parse(spelling)
        except PrecisionError:  # formats for weights, and those with their own groups
            continue
        why = why_not(name, kind, precision)
        is_weight_alone = kind == "embedding" and spelling in inputs  # it reads ids
        assert why or is_weight_alone, spelling


PLAIN = ["w4g32a32", "w4a32", "w8a32", "w8a8", "w8a8d", "w4g32a8d"]


@pytest.mark.parametrize("name", [n for n in HOLDING if n != "llama-cpp-cache"])
def test_scales_of_another_type_and_fractions_are_refused(name: str) -> None:
    """With scales of its own type alone; recipes say no type, and one is of caches alone."""
    target = BACKENDS.build(name)
    asked_for = [*PLAIN, *(target.candidates if isinstance(target, Target) else ())]
    held = [p for p in map(Precision.parse, asked_for) if not why_not(name, "linear", p)]
    assert held
    for plain in held:
        for scale in SCALE_FORMATS:
            try:
                asked = replace(plain, weight=replace(plain.weight, scale=scale))
            except PrecisionError:  # scales of a whole weight, and formats without a scale
                continue
            is_own = isinstance(target, Target) and scale == scale_type_of(
                plain.weight, target.arithmetic
            )
            assert (why_not(name, "linear", asked) == "") == is_own, asked
        if plain.weight.is_scaled_integer:
            fraction = replace(plain.weight, symmetric=False, float_zero=True)
            assert "zf" in why_not(name, "linear", replace(plain, weight=fraction))


@pytest.mark.parametrize("text", ["w8a8c", "w8a8sc", "w8a8f", "w8a8sf", "w8afp8f", "w4a4twin"])
@pytest.mark.parametrize("name", [part.name for part in BACKENDS if issubclass(part, Target)])
def test_no_target_takes_inputs_that_are_simulated_alone(name: str, text: str) -> None:
    """With the reason: a search for it leaves them out."""
    why = target_of(name).why_not(layer("fc", "linear", 64, 256), Precision.parse(text), None)
    assert why.startswith("no kernel here")


def test_what_is_no_target_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(InputError, match="onnx is no deployment target; those are: onnx-qdq"):
        target_of("onnx")


@pytest.mark.usefixtures("any_network")
def test_a_search_counts_the_bytes_and_keeps_the_numerics_of_its_target(tmp_path: Path) -> None:
    """And says which layers stay as they came, in the result as well."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 40), nn.ReLU(), nn.Linear(40, 10)
    ).eval()
    task = mpq.Task(model, [torch.randn(16, 3, 4, 4)], to="compressed-tensors")

    result = mpq.search(task, ["weight_bytes=2KiB"], sensitivity="weight-error")

    found = result.assignment
    target = target_of("compressed-tensors")
    assert found.numerics == target.numerics
    assert list(result.provenance.unshipped) == ["0"]
    assert "conv2d" in result.provenance.unshipped["0"]
    assert found.precisions["0"] == ORIGINAL
    target.check(found.layers)
    kept = 4 * (8 * 27 + 8 + 40 + 10)
    bits = sum(target.stored_bits(x, x.precision) for x in found.layers if x.name != "0")
    (budget,) = found.metadata.budgets
    assert budget.used == kept + bits / 8
    rows = [row for row in result.comparisons[2:] if "g" not in row.label]  # 128 divides no row
    assert len(rows) > 3
    for row in rows:
        # Named by a precision: all but the convolution, whose bytes count as they came.
        same = dict.fromkeys(found.precisions, Precision.parse(row.label)) | {"0": ORIGINAL}
        bits = sum(target.stored_bits(x, same[x.name]) for x in found.layers if x.name != "0")
        assert row.costs["weight_bytes"] == kept + -(-bits // 8)
        measured = mpq.Session.of(task).prepared.on_held_out.measure(same)
        assert row.measured.divergence == measured.divergence
    labels = [point.label for point in result.frontier("weight_bytes").others]
    assert labels == [row.label for row in result.comparisons[1:]]
    result.save(tmp_path)
    again = mpq.load(tmp_path)
    assert again.provenance == result.provenance
    assert again.assignment.numerics == target.numerics


@pytest.mark.usefixtures("any_network")
def test_a_limit_that_no_layer_can_meet_names_those_that_the_target_does_not_hold() -> None:
    """What is left as it came takes the bytes, and "too much" alone would not say why."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 4, 8)).eval()
    task = mpq.Task(model, [torch.randn(16, 3, 4, 4)], to="compressed-tensors")

    with pytest.raises(
        InfeasibleError,
        match="1 of 2 layers stay as they came, as compressed-tensors holds none of their "
        "candidates; the first is '0': .*conv2d",
    ):
        mpq.search(task, ["weight_bytes=4KiB"])


def test_modules_that_the_tools_do_not_know_stay_as_they_came() -> None:
    """GPT-2's ``Conv1D`` is a linear layer of another class: the search names it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    data = [{"input_ids": torch.randint(0, 64, (4, 8))}]

    with pytest.raises(PrecisionError, match="this is a Conv1D"):
        mpq.search(
            mpq.Task(model, data, to="compressed-tensors", rules=mpq.Rules(include=["*.c_*"])),
            ["weight_bytes=100KiB"], sensitivity="weight-error",
        )  # fmt: skip


@pytest.mark.usefixtures("any_network")
def test_a_journal_knows_the_numerics(tmp_path: Path) -> None:
    """Rows that were measured without a target are not believed in a search for one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    data, journal = [torch.randn(64, 32)], f"measured:journal={tmp_path / 'rows'}"

    def losses(to: str | None, sensitivity: str) -> list[list[float]]:
        task = mpq.Task(model, data, candidates=["w3a32", "w4a8sd"], to=to)
        found = mpq.search(task, ["weight_bytes=1x:w4a8sd"], sensitivity=sensitivity)
        values: list[list[float]] = found.problem.loss.values.tolist()
        return values

    assert losses(None, journal) != losses("compressed-tensors", "measured")
    with pytest.raises(InputError, match="of another measurement .other numerics."):
        losses("compressed-tensors", journal)


@pytest.mark.usefixtures("any_network")
@pytest.mark.parametrize("resource", ["weight_bytes", "flash"])
def test_what_a_target_does_not_hold_counts_as_it_came(resource: str) -> None:
    """In every resource that counts bytes of weights, also as the reference of a limit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(32, 10)).eval()
    task = mpq.Task(model, [torch.randn(8, 3, 4, 4)], to="compressed-tensors", candidates=["w8a32"])
    pricing = mpq.Session.of(task).prepared.pricing

    table = pricing.table(resource, task.precisions)

    # 8-bit codes in whole words, a scale per channel, and the two numbers of ``weight_shape``.
    assert table.values[:, 0].tolist() == [4 * 8 * 27, 10 * 32 + 4 * 10 + 16]


@pytest.mark.usefixtures("any_network")
def test_a_fixed_precision_that_the_target_lacks_is_refused() -> None:
    """With the layer and the reason."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval()
    task = mpq.Task(
        model, [torch.randn(8, 8)], to="compressed-tensors", rules=mpq.Rules(fix={"1": "w4za32"})
    )

    with pytest.raises(PrecisionError, match="layer '1' is fixed at w4za32"):
        mpq.search(task, ["weight_bytes=1KiB"], sensitivity="weight-error")


@pytest.mark.parametrize(("precision", "is_median"), [("w8a32", False), ("w8a8", True)])
@pytest.mark.parametrize("name", ["compressed-tensors", "gguf", "onnx-qdq", "openvino"])
def test_what_is_judged_is_what_the_target_says(name: str, precision: str, is_median: bool) -> None:
    """The median example always, never, or where inputs are rounded."""
    target = target_of(name)
    told = {"gguf": MEDIAN, "compressed-tensors": LARGEST}.get(name, MEDIAN_OF_ROUNDED)
    expected = {MEDIAN: True, LARGEST: False}.get(told, is_median)
    number = Precision.parse(precision)
    assigned = AssignedLayer("l", "linear", (4, 4), number, ActivationRange(0.0, 1.0))

    assert target.judged == told
    assert target.has_ties(mpq.Assignment((assigned,))) is expected
