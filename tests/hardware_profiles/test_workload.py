"""Workloads: what a layer is at so many tokens, and which formats are then the best."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles import LINEAR_RESOURCES, Phase, Pricing, Workload, load_device
from mpq.network.layer import Layer
from mpq.network.workload import tokens_of
from mpq.problem.assignment import Assignment
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import uniform_cost
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import Lagrangian

CONV = Layer("conv", "conv2d", (8, 3, 3, 3), 8, (3, 6, 5), (8, 6, 5), 90, 240, 6480)
HEAD = Layer("head", "linear", (10, 64), 10, (64,), (10,), 64, 10, 640)


def linear(name: str, tokens: tuple[int, ...], inputs: int, outputs: int, calls: int = 1) -> Layer:
    """A linear layer over an array of tokens, counted by hand."""
    count = prod(tokens) * calls
    return Layer(
        name, "linear", (outputs, inputs), outputs, (*tokens, inputs), (*tokens, outputs),
        count * inputs, count * outputs, count * inputs * outputs, calls,
    )  # fmt: skip


def embedding(tokens: tuple[int, ...], rows: int, width: int) -> Layer:
    """An embedding of ids, counted by hand."""
    count = prod(tokens)
    shape = (rows, width)
    return Layer("emb", "embedding", shape, rows, tokens, (*tokens, width), count, count * width, 0)


SIZES = st.integers(1, 9)
AXES = st.lists(SIZES, min_size=1, max_size=3).map(tuple)


@given(AXES, SIZES, SIZES, st.integers(1, 4), st.integers(1, 10**4))
def test_a_linear_layer_at_other_tokens(
    axes: tuple[int, ...], inputs: int, outputs: int, calls: int, tokens: int
) -> None:
    """It is the layer that would have been counted, had it been traced with so many tokens."""
    layer = linear("fc", axes, inputs, outputs, calls)

    found = Workload(phase="prefill", tokens=tokens).of(layer)

    expected = linear("fc", (tokens,), inputs, outputs, calls)
    assert found == (layer if prod(axes) == tokens else expected)
    assert tokens_of(layer) == prod(axes)


@given(AXES, SIZES, SIZES)
def test_an_embedding_at_one_token(axes: tuple[int, ...], rows: int, width: int) -> None:
    """Decoding looks up a single row."""
    found = Workload(phase="decode").of(embedding(axes, rows, width))

    assert replace(found, input_shape=(1,), output_shape=(1, width)) == embedding((1,), rows, width)


@pytest.mark.parametrize("layer", [CONV, HEAD], ids=lambda layer: str(layer.name))
@pytest.mark.parametrize("workload", [Workload(3, "decode"), Workload(3, "prefill", 99)])
def test_a_layer_without_tokens_is_left_alone(layer: Layer, workload: Workload) -> None:
    """A convolution, and a head that reads one vector per example, run as they were traced."""
    assert workload.of(layer) is layer
    assert tokens_of(layer) is None


@pytest.mark.parametrize("workload", [Workload(), Workload(5), Workload(2, "prefill")])
def test_without_tokens_a_layer_is_as_traced(workload: Workload) -> None:
    """No phase, and a prompt of unstated length, mean the examples as they are."""
    layer = linear("fc", (3, 4), 5, 6)

    assert workload.of(layer) is layer


def test_calls_of_unlike_lengths_are_rounded_up() -> None:
    """Elements are counted over all calls; a part of one is one."""
    layer = replace(linear("fc", (4,), 2, 3), input_elements=9, output_elements=13, calls=2)

    found = Workload(phase="decode").of(layer)

    assert (found.input_elements, found.output_elements) == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), InputError, "the batch size is at least 1; got 0"),
        ((1, "decoding"), UnknownNameError, "no phase 'decoding'; did you mean 'decode'"),
        ((1, "prefill", 0), InputError, "a prompt has at least 1 token; got 0"),
        ((1, "prefill", -4), InputError, "at least 1 token; got -4"),
        ((1, None, 64), InputError, "64 tokens of what"),
        ((1, "decode", 64), InputError, "decode runs one new token .*; got 64 tokens: leave them"),
        ((1, "decode", 1), InputError, "decode runs one new token"),
    ],
)
def test_a_workload_that_makes_no_sense(
    arguments: tuple[int, str | None, int | None], error: type[Exception], message: str
) -> None:
    """The error says what was expected, what came, and what to do."""
    with pytest.raises(error, match=message):
        Workload(*arguments)


@pytest.mark.parametrize("workload", [Workload(1, "decode"), Workload(1, "prefill")])
def test_a_phase_needs_a_layer_that_reads_tokens(workload: Workload) -> None:
    """A network of convolutions has no tokens to decode, and is told so, not priced wrongly."""
    with pytest.raises(InputError, match=f"phase {workload.phase} needs a layer that reads tokens"):
        Pricing((CONV, HEAD), None, workload)

    assert Pricing((CONV, embedding((7,), 5, 3)), None, workload).layers


def test_what_needs_no_device_is_priced_at_the_same_tokens() -> None:
    """Activations and bit operations of one example grow with its tokens; weights do not."""
    layers, candidate = (linear("fc", (4,), 6, 10), HEAD), [Precision.parse("w4a8")]
    traced, long = (Pricing(layers, None, w) for w in (Workload(), Workload(9, "prefill", 12)))

    ratio = {
        resource: long.table(resource, candidate).values / traced.table(resource, candidate).values
        for resource in LINEAR_RESOURCES
    }

    assert ratio["activation_bytes"][:, 0].tolist() == [3, 1]
    assert ratio["bit_operations"][:, 0].tolist() == [3, 1]
    assert (ratio["weight_bytes"] == 1).all()
    assert (ratio["effective_bits"] == 1).all()
    assert long.amount("bit_operations", {"fc": candidate[0], "head": candidate[0]}) == (
        12 * 60 * 32 + 640 * 32
    )


def test_a_prompt_costs_what_as_many_traced_tokens_cost() -> None:
    """Pricing for N tokens is pricing layers that were traced with N tokens."""
    profile, candidates = load_device("nvidia-a100"), [Precision.parse("w4a16")]
    short, long = ([linear("a", (n,), 64, 96), embedding((n,), 50, 64)] for n in (7, 512))

    for resource in profile.resources:
        found = profile.cost(resource, short, candidates, Workload(3, "prefill", 512))
        expected = profile.cost(resource, long, candidates, Workload(3))

        assert found.values == pytest.approx(expected.values, rel=1e-15)


DECODER = tuple(
    linear(name, (128,), inputs, outputs)
    for name, inputs, outputs in (
        ("q", 4096, 4096), ("k", 4096, 1024), ("v", 4096, 1024), ("o", 4096, 4096),
        ("up", 4096, 11008), ("down", 11008, 4096),
    )
)  # fmt: skip
FORMATS = tuple(map(Precision.parse, ("fp16", "w8a8", "w4g128a16")))


def optimum(workload: Workload, factor: float) -> list[str]:
    """Formats of a decoder's layers within a share of fp16's latency on an A100."""
    names = tuple(layer.name for layer in DECODER)
    loss = np.tile([0.0, 2.0, 1.0], (len(names), 1))  # narrow activations hurt more than weights
    latency = Pricing(DECODER, load_device("nvidia-a100"), workload).table("latency", FORMATS)
    limit = factor * uniform_cost(latency, FORMATS[0])
    table = CostTable("loss", "nats", names, FORMATS, loss)

    solution = Lagrangian().solve(Problem(table, Constraints((Budget.of(latency, limit),))))

    assert solution.columns is not None
    return [str(FORMATS[column]) for column in solution.columns]


def test_decode_and_prefill_have_different_optima() -> None:
    """One token waits for the weights, so that w4a16 helps; a prompt waits for arithmetic.

    Four-bit weights run as fp16 arithmetic: in prefill they save nothing, and only int8 does.
    """
    decode, prefill = (
        optimum(Workload(1, "decode"), 0.5),
        optimum(Workload(1, "prefill", 4096), 0.7),
    )

    assert set(decode) == {"fp16", "w4g128a16"}
    assert set(prefill) == {"fp16", "w8a8"}


@pytest.mark.parametrize(
    ("workload", "order"),
    [
        (Workload(1, "decode"), ["w4g128a16", "w8a8", "fp16"]),
        (Workload(1, "prefill", 4096), ["w8a8", "fp16", "w4g128a16"]),
        (Workload(4096, "decode"), ["w8a8", "fp16", "w4g128a16"]),
    ],
    ids=["one token", "prompt", "many sequences"],
)
def test_the_order_of_formats_turns_with_the_phase(workload: Workload, order: list[str]) -> None:
    """Decoding thousands of sequences at once is bound by arithmetic again."""
    latency = Pricing(DECODER, load_device("nvidia-a100"), workload).table("latency", FORMATS)

    seconds = {str(candidate): uniform_cost(latency, candidate) for candidate in FORMATS}

    assert sorted(order, key=seconds.__getitem__) == order


class Tiny(nn.Module):
    """Ids to logits of each token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.fc, self.out = nn.Embedding(11, 64), nn.Linear(64, 64), nn.Linear(64, 11)

    def forward(self, ids: Tensor) -> Tensor:
        """``[N, T]`` to ``[N, T, 11]``."""
        logits: Tensor = self.out(torch.relu(self.fc(self.emb(ids))))
        return logits


IDS = [torch.randint(0, 11, (8, 6), generator=torch.Generator().manual_seed(1)) for _ in range(2)]


PRICED_FOR: tuple[tuple[Phase | None, int | None], ...] = (
    (None, None),
    ("decode", None),
    ("prefill", 4096),
)


def test_a_search_for_a_phase_is_on_record(tmp_path: Path) -> None:
    """The assignment says what it was priced for, and its costs are those of that phase."""
    found = {
        phase: mpq.search(
            mpq.Task(
                Tiny().eval(), IDS, device="nvidia-t4", candidates=["w4a8", "w8a8"],
                workload=mpq.Workload(phase=phase, tokens=tokens),
            ),
            ["latency=1x:w8a8"], sensitivity="weight-error",
        )
        for phase, tokens in PRICED_FOR
    }  # fmt: skip

    records = {phase: result.assignment.metadata for phase, result in found.items()}
    limits = [record.budgets[0].limit for record in records.values()]
    found["prefill"].assignment.save(tmp_path)
    kept = Assignment.load(tmp_path).metadata

    assert tuple((r.phase, r.tokens) for r in records.values()) == PRICED_FOR
    assert limits[1] < limits[0] < limits[2]
    assert (kept.phase, kept.tokens) == ("prefill", 4096)


def test_an_assignment_of_before_there_were_phases_is_read() -> None:
    """Files without the two keys mean examples as they were traced."""
    task = mpq.Task(Tiny().eval(), IDS, candidates=["w4a8"], rounding="nearest")
    result = mpq.search(task, {"effective_bits": 9}, sensitivity="weight-error")
    data = json.loads(result.assignment.to_json())
    del data["metadata"]["phase"], data["metadata"]["tokens"]

    record = Assignment.from_json(json.dumps(data)).metadata

    assert (record.phase, record.tokens) == (None, None)
    data["metadata"]["phase"] = "training"
    with pytest.raises(FileFormatError, match="metadata/phase: 'training' is not one of"):
        Assignment.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--phase", "decod"), "no phase 'decod'; did you mean 'decode'"),
        (("--tokens", "128"), "128 tokens of what"),
        (("--phase", "decode", "--tokens", "128"), "got 128 tokens: leave them out"),
        (("--phase", "prefill", "--tokens", "0"), "at least 1 token; got 0"),
        (("--phase", "decode"), "phase decode needs a layer that reads tokens"),
    ],
)
@pytest.mark.parametrize("command", ["search", "compare"])
def test_the_command_line_refuses_a_workload(
    command: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """One line on standard error, exit code 2; the demo is a network of convolutions."""
    result = CliRunner().invoke(app, [command, *options, "--output", str(tmp_path)])

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
