"""A GGUF file is as large as a search for it said, to the byte."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import mpq
from mpq.backends.file_size import promised
from mpq.backends.gguf import Gguf
from mpq.backends.gguf import target as gguf_target
from mpq.backends.gguf.runtime import FILE
from mpq.backends.target import Shipped
from mpq.cli.__main__ import app
from mpq.errors import InfeasibleError, InputError, MissingDependencyError, ModelError
from tests.backends.gguf.networks import ALL, assigned, examples, network

pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 64},
    "gemma2": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 4},
}
STRETCHED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
MIXES = [*ALL, "wmxfp4", "wnvfp4", "fp16", "fp32"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(list(KINDS)),
    hidden=st.sampled_from([96, 256]),
    is_tied=st.booleans(),
    is_half=st.booleans(),
    is_stretched=st.booleans(),
    two_bits=st.sampled_from(["TQ2_0", "Q2_K"]),
    mix=st.lists(st.sampled_from(MIXES), min_size=1, max_size=9),
)
def test_the_file_has_the_bytes_that_were_promised(
    tokenizer: str, kind: str, hidden: int, is_tied: bool, is_half: bool, is_stretched: bool,
    two_bits: str, mix: list[str],
) -> None:  # fmt: skip
    """Header, vocabulary and paddings: of every architecture, whatever the types of its tensors."""
    more = KINDS[kind] | ({"rope_parameters": STRETCHED} if is_stretched else {})
    model = network(kind, hidden, 160, tie_word_embeddings=is_tied, **more)
    if is_half:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    target = Gguf(tokenizer, two_bits)
    shipped = Shipped.of(
        model, replace(assigned(model, *mix, target=target), numerics=target.numerics)
    )

    told = promised(target, shipped)
    with TemporaryDirectory() as place:
        target.write(shipped, Path(place))
        found = Path(place, FILE).stat().st_size

    assert told is not None
    assert (told.constant_bytes, told.slack_bytes) == (found, 0)


def test_a_chat_template_and_more_tokens_are_in_the_promise(tokenizer: str, tmp_path: Path) -> None:
    """The constant is what the vocabulary takes, too."""
    model, larger = network("llama"), tmp_path / "tokenizer"
    shutil.copytree(tokenizer, larger)
    stated = json.loads((larger / "tokenizer_config.json").read_text(encoding="utf-8"))
    stated["chat_template"] = "{{ messages }}" * 100
    (larger / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")

    sizes = [Gguf(x).file_size(model, model, []).constant_bytes for x in (tokenizer, str(larger))]

    assert sizes[1] - sizes[0] >= 1400


@pytest.mark.usefixtures("same_process")
def test_a_search_keeps_the_limit_in_bytes_of_the_file(tokenizer: str, tmp_path: Path) -> None:
    """What was searched for is what the file has; a layer more precise, and it is refused."""
    pytest.importorskip("xllamacpp")
    model, to = network("llama", 96, 160), f"gguf:tokenizer={tokenizer}"
    task = mpq.Task(model, examples(4), to=to, rounding="nearest")

    result = mpq.search(task, {"file_bytes": "0.7x:w8"}, sensitivity="weight-error")

    (budget,) = result.assignment.metadata.budgets
    costs = result.comparison("result").costs
    assert budget.resource == "file_bytes"
    assert budget.used == costs["file_bytes"] <= budget.limit
    assert costs["file_bytes"] > costs["weight_bytes"] + 5000  # the vocabulary
    assert result.frontier("file_bytes", num_points=3).unit == "bytes"
    mpq.export(result.assignment, tmp_path / "out", to, model, examples(4))
    told = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    file = tmp_path / "out" / FILE
    assert told["promised_bytes"] == told["file_bytes"] == budget.used == file.stat().st_size
    by_hand = [replace(x, precision=mpq.Precision.parse("w8g32")) for x in result.assignment.layers]
    edited = replace(result.assignment, layers=tuple(by_hand), weights=None)
    with pytest.raises(
        ModelError, match=r"the files have \d+ bytes, \d+ more than the [\d.]+ that"
    ):
        mpq.export(edited, tmp_path / "edited", to, model, examples(4))
    assert not (tmp_path / "edited").exists()


def test_a_limit_below_the_vocabulary_says_by_how_much(tokenizer: str) -> None:
    """As of any other resource."""
    task = mpq.Task(network("llama"), examples(), to=f"gguf:tokenizer={tokenizer}")

    with pytest.raises(
        InfeasibleError, match=r"file_bytes: limit 100000 bytes, smallest reachable \d+: \d+ bytes"
    ):
        mpq.search(task, {"file_bytes": "100KB"})


def test_without_the_package_other_limits_can_still_be_searched_for(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a header is not guessed: the pip line, for whoever asks."""

    def missing(package: str, extra: str) -> None:
        raise MissingDependencyError(f"{package} is not installed: pip install 'mpq[{extra}]'")

    monkeypatch.setattr(gguf_target, "require", missing)
    model, to = network("llama", 96, 160), f"gguf:tokenizer={tokenizer}"
    task = mpq.Task(model, examples(), to=to, rounding="nearest")

    result = mpq.search(task, {"weight_bytes": "0.7x:w8"}, sensitivity="weight-error")

    assert "file_bytes" not in {table.name for table in result.tables}
    with pytest.raises(InputError, match=r"gguf is not installed: pip install 'mpq\[gguf\]'"):
        mpq.search(task, {"file_bytes": "1MB"})


NET = """
from tests.backends.gguf.networks import examples, network


def model():
    return network("llama", 96, 160)


DATA = list(examples(4))


def data():
    return DATA
"""


@pytest.mark.usefixtures("same_process")
def test_on_the_command_line_a_file_is_searched_for_and_exported(
    tokenizer: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limit, report, problem and file have the same bytes; `mpq solve` takes a smaller limit."""
    pytest.importorskip("xllamacpp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(root))
    Path("net.py").write_text(NET, encoding="utf-8")
    to = f"gguf:tokenizer={tokenizer}"
    net = ["--model", "net.py:model", "--data", "net.py:data", "--to", to]

    searched = CliRunner().invoke(
        app,
        ["search", *net, "--limit", "file_bytes=0.25MB", "--sensitivity", "weight-error",
         "--rounding", "nearest"],
    )  # fmt: skip
    assert searched.exit_code == 0, searched.output
    exported = CliRunner().invoke(app, ["export", "mpq-run", *net, "--output", "shipped"])
    assert exported.exit_code == 0, exported.output

    size = Path("shipped", FILE).stat().st_size
    record = json.loads(Path("mpq-run/assignment.json").read_text(encoding="utf-8"))
    (budget,) = record["metadata"]["budgets"]
    assert budget["resource"] == "file_bytes"
    assert budget["used"] == size <= budget["limit"] == 250_000
    assert "file_bytes" in searched.output
    assert f"{size} bytes (at most {size} promised" in exported.output.replace("\n", " ")
    asked = ["solve", "mpq-run/problem.json", "--limit", "file_bytes=235KB"]
    solved = CliRunner().invoke(app, asked)
    assert solved.exit_code == 0, solved.output
    (answer,) = json.loads(solved.stdout)
    assert answer["budgets"][0]["used"] <= 235_000


def test_the_weights_dtype_is_what_the_promise_counts(tokenizer: str) -> None:
    """As it came: float32, or the half precision that it is in."""
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        model = network("llama")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        told = Gguf(tokenizer).file_size(model, model, [])
        sizes.append(told.constant_bytes)
    matrices = sum(p.numel() for p in network("llama").parameters() if p.ndim > 1)
    assert sizes[0] - sizes[1] == 2 * matrices
