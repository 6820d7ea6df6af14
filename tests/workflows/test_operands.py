"""Operands between layers among the layers of a search: priced, measured, saved, and used."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends import BACKENDS
from mpq.errors import InputError, PrecisionError
from mpq.quantization.quantizer import quantized
from mpq.sensitivity import ESTIMATORS
from mpq.workflows.setup import Prepared

LIMITS = {"bit_operations": "0.5x:w8a8"}


class Block(nn.Module):
    """A residual block that adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what a convolution makes of it."""
        y: Tensor = self.norm(self.conv(x))
        y += x
        return y.relu()


class Net(nn.Module):
    """A block, and attention over its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.attend = Block(), nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        tokens: Tensor = self.block(x).flatten(2).mT
        tokens = tokens + self.attend(tokens, tokens, tokens)[0]
        found: Tensor = self.fc(tokens.mean(1))
        return found


def net() -> nn.Module:
    """With random weights, large enough that formats tell."""
    torch.manual_seed(0)
    model = Net().eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


def examples(seed: int) -> list[Tensor]:
    """Two batches of eight images."""
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 4, 4, 4, generator=draws) for _ in range(2)]


def task(**options: Any) -> mpq.Task:
    """With weights to nearest, as it is operands that are asked about."""
    known: dict[str, Any] = {
        "candidates": ["w4a4", "w8a8"], "activations": "all", "rounding": "nearest",
    }  # fmt: skip
    return mpq.Task(net(), examples(1), examples(2), **known | options)


@cache
def found() -> mpq.SearchResult:
    """A search within half of the bit operations."""
    return mpq.search(task(), LIMITS, sensitivity="sketch")


def test_operands_take_the_activation_part_of_candidates() -> None:
    """In the order of the network, each with a range of its own."""
    chosen = {x.name: x for x in found().assignment.layers if x.kind in ("add", "matmul")}

    assert [*chosen] == [
        "block.add.left", "block.add.right", "attend.qk.query", "attend.qk.key",
        "attend.pv.probabilities", "attend.pv.values", "add.left", "add.right",
    ]  # fmt: skip
    assert {str(x.precision) for x in chosen.values()} <= {"w32a4", "w32a8"}
    assert all(x.activation_range is not None for x in chosen.values())
    columns = found().solution.columns
    assert columns is not None
    assert all(budget.is_met(columns) for budget in found().problem.budgets)


def test_a_saved_assignment_does_what_was_measured(tmp_path: Path) -> None:
    """Names, places and ranges are in the file; another process makes the same network of it."""
    found().save(tmp_path)

    loaded = mpq.load(tmp_path)
    measured = mpq.evaluate(net(), loaded.assignment, examples(2))["quantized"].divergence

    assert loaded.assignment == mpq.Assignment.load(tmp_path) == found().assignment
    assert loaded.provenance.operands_left == found().provenance.operands_left == {}
    assert measured == pytest.approx(found().measured.divergence, rel=1e-6)


def test_inputs_alone_is_the_search_without_operands() -> None:
    """Every layer, table and loss is what it is where nothing is said."""
    plain, asked = (mpq.search(task(**o), LIMITS) for o in ({"activations": "inputs"}, {}))

    operands = {layer.name for layer in asked.layers if layer.is_operand}
    assert [x.name for x in plain.layers] == [
        x.name for x in asked.layers if x.name not in operands
    ]
    assert plain.provenance.operands_left is None
    silent = mpq.Task(
        net(), examples(1), examples(2), candidates=["w4a4", "w8a8"], rounding="nearest"
    )
    again = mpq.search(silent, LIMITS)
    assert np.array_equal(again.problem.loss.values, plain.problem.loss.values)
    assert again.assignment.precisions == plain.assignment.precisions


def test_uniform_precisions_have_operands_of_their_activation() -> None:
    """A row of the comparison is called by what layers with weights have."""
    rows = [row.label for row in found().comparisons]

    assert rows == ["original", "result", "w4a4", "w8a8"]
    prepared = Prepared.of(task())
    four = {
        x.name: mpq.Precision.parse("w4a4" if x.has_weights else "w32a4")
        for x in prepared.network.layers
    }
    measured = prepared.on_held_out.measure(four).divergence
    row = next(row for row in found().comparisons if row.label == "w4a4")
    assert row.measured.divergence == pytest.approx(measured)


def test_bit_operations_of_a_product_are_those_of_both_operands() -> None:
    """Exactly where both have the same bits, and no fewer elsewhere; additions multiply nothing."""
    prepared = Prepared.of(task())
    table = prepared.pricing.table("bit_operations", prepared.candidates)
    row = dict(zip(table.layers, table.values, strict=True))
    four, eight = (table.precisions.index(mpq.Precision.parse(f"w32a{b}")) for b in (4, 8))

    macs = 2 * 16 * 16 * 2  # heads, queries, keys, numbers of a head
    for one, other in (("qk.query", "qk.key"), ("pv.probabilities", "pv.values")):
        a, b = row[f"attend.{one}"], row[f"attend.{other}"]
        assert a[four] + b[four] == macs * 4 * 4
        assert a[eight] + b[eight] == macs * 8 * 8
        assert a[four] + b[eight] >= macs * 4 * 8
    assert not row["block.add.left"].any()


def test_bytes_of_activations_count_what_operands_read() -> None:
    """Once for each, and none of their weights."""
    prepared = Prepared.of(task())

    read, stored = (
        prepared.pricing.table(resource, prepared.candidates)
        for resource in ("activation_bytes", "weight_bytes")
    )

    place, four = read.layers.index("add.left"), read.index_of(mpq.Precision.parse("w32a4"))
    assert read.values[place, four] == 16 * 4 * 4 / 8
    assert not stored.values[place].any()


def test_peak_ram_holds_operands_in_their_formats() -> None:
    """Rounding a tensor in place takes no memory of its own, and fewer bits take less."""
    every, plain = (Prepared.of(task(activations=which)) for which in ("all", "inputs"))

    def peak(prepared: Prepared, bits: int) -> float:
        of_layers = {x.name: mpq.Precision.parse(f"w8a{bits}") for x in prepared.network.layers}
        return float(prepared.pricing.amount("peak_ram", of_layers))

    assert peak(every, 8) == peak(plain, 8)
    assert peak(every, 4) < peak(every, 8)


@pytest.mark.parametrize("name", sorted(e.name for e in ESTIMATORS))
def test_an_estimator_prices_operands_or_is_refused(name: str) -> None:
    """Fewer bits cost more; no estimator says that they cost nothing."""
    rules = mpq.Rules(include=["block.*", "attend.qk.*", "fc"])
    asked, estimator = task(rules=rules), ESTIMATORS.build(name)
    if not estimator.prices_caches:
        with pytest.raises(InputError, match=f"estimator '{name}' prices weights, which operands"):
            mpq.search(asked, LIMITS, sensitivity=estimator)
        return

    table = estimator.estimate(Prepared.of(asked).asked).table

    rows = [row for row, layer in enumerate(table.layers) if ".qk." in layer or ".add." in layer]
    four, eight = (table.index_of(mpq.Precision.parse(f"w32a{bits}")) for bits in (4, 8))
    assert len(rows) == 4
    assert (table.values[rows, four] > table.values[rows, eight]).all()
    assert (table.values[rows, eight] > 0).all()


def test_the_sketch_prices_what_is_measured() -> None:
    """Where little is lost, to within a half."""
    on = Prepared.of(task(candidates=["w8a8", "w8a7"])).asked

    sketch, measured = (
        ESTIMATORS.build(name).estimate(on).table for name in ("sketch", "measured")
    )

    rows = [row for row, x in enumerate(on.network.layers) if x.is_operand]
    columns = [sketch.index_of(mpq.Precision.parse(f"w32a{bits}")) for bits in (7, 8)]
    ratio = sketch.values[np.ix_(rows, columns)] / measured.values[np.ix_(rows, columns)]
    assert np.abs(np.log(ratio)).max() < np.log(2)
    assert np.abs(np.log(ratio).mean()) < np.log(1.5)


def test_an_operand_that_is_left_out_stays_as_it_came() -> None:
    """Rules name operands as they name layers, and what they say of weights is left off."""
    rules = mpq.Rules(
        exclude=["*.right"], fix=[("add.left", "w4a8")], allow=[("attend*", ["w4a8"])]
    )

    result = mpq.search(task(rules=rules), {"bit_operations": "2x:w8a8"}, sensitivity="sketch")

    chosen = {name: str(p) for name, p in result.assignment.precisions.items()}
    assert not any(name.endswith(".right") for name in chosen)
    assert chosen["add.left"] == chosen["attend.qk.key"] == "w32a8"
    assert chosen["attend.q_proj"] == "w4a8"


def test_a_dynamic_scale_is_that_of_a_row_or_of_an_example() -> None:
    """A row of a product or of tokens; a whole example where there are maps."""
    prepared = Prepared.of(task(candidates=["w8a4d"]))
    seen: dict[str, Tensor] = {}
    for layer in prepared.network.layers:
        if layer.is_operand:
            part = prepared.network.layer_module(layer.name)
            part.register_forward_hook(
                lambda _, __, y, name=layer.name: seen.update({name: y.clone()})
            )
    of_layers = {x.name: mpq.Precision.parse("w32a4d") for x in prepared.network.layers}

    with quantized(prepared.network, of_layers, prepared.quantizer), torch.no_grad():
        prepared.network.module(examples(3)[0])

    assert max(len(row.unique()) for row in seen["add.left"].flatten(0, 1)) <= 4
    assert max(len(x.unique()) for x in seen["block.add.left"]) <= 16
    assert max(len(x.unique()) for x in seen["attend.pv.probabilities"].flatten(0, 2)) <= 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "some"}, "no choice of activations 'some'"),
        ({"candidates": ["w4", "w8"]}, "no candidate rounds activations"),
        ({"candidates": ["w8a8c"]}, "a scale for every input channel"),
        ({"candidates": ["w8a8f"]}, "the first position"),
        ({"workers": "ray"}, "in this process or by torchrun"),
        ({"to": "litert", "candidates": ["w8a8"]}, "litert rounds inputs of layers alone"),
    ],
)
def test_what_does_not_go_with_operands_is_refused(options: dict[str, Any], message: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=message):
        task(**options)


@pytest.mark.parametrize("name", sorted(b.name for b in BACKENDS if b.writes_files))
def test_a_backend_that_holds_no_operand_refuses_it_by_name(name: str, tmp_path: Path) -> None:
    """Or writes it; nothing is left out in silence."""
    path = tmp_path / "file"
    if name == "onnx-qdq":
        with pytest.raises(PrecisionError, match="rounds no inputs to int4"):
            mpq.export(found().assignment, path, name, net(), examples(1))
        return
    if name == "text":
        mpq.export(found().assignment, path, name)
        assert "attend.qk.query" in path.read_text()
        return
    with pytest.raises(PrecisionError, match="the operand 'block.add.left' is at w32a"):
        mpq.export(found().assignment, path, name, net(), examples(1))


def test_a_cache_is_the_operand_of_attention() -> None:
    """Keys and values are rounded once, in either implementation of transformers."""
    transformers = pytest.importorskip("transformers", minversion="5")
    chosen = []
    for kind in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, vocab_size=32, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, attn_implementation=kind,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).eval()
        data = [{"input_ids": torch.randint(0, 32, (2, 9))} for _ in range(2)]
        cached = Prepared.of(
            mpq.Task(
                model, data, data, candidates=["w8a8"], activations="all",
                kv_cache=mpq.KVCache(9, ["a8d"], first=1, window=2),
            )
        ).network  # fmt: skip
        within = [x for x in cached.layers if x.name.startswith("model.layers.0.self_attn.")]
        chosen.append([x.name.removeprefix("model.layers.0.self_attn.") for x in within])
        query = next(x for x in within if x.name.endswith("query"))
        assert query.macs == 4 * 9 * 9 * 4
        with torch.no_grad():
            expected = model(**data[0]).logits
            torch.testing.assert_close(cached.module(**data[0]).logits, expected)
    sdpa, eager = chosen
    assert sdpa == eager
    assert {"k_cache", "v_cache", "qk.query", "pv.probabilities"} <= {*sdpa}
    assert not {"qk.key", "pv.values"} & {*sdpa}
