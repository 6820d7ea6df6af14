"""GGUF files: written, read by the ``gguf`` package, run by llama.cpp."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpq
from mpq.backends.gguf import Gguf, runtime
from mpq.backends.gguf.runtime import CHECK, FILE, last_positions, prompts
from mpq.backends.shipping import ship
from mpq.backends.stored import predicted_bytes
from mpq.backends.target import Shipped
from mpq.errors import InputError, ModelError, PrecisionError
from mpq.network.examples import Batch, Calibration
from mpq.problem.assignment import Assignment
from tests.backends.gguf.networks import ALL, assigned, examples, network

pytest.importorskip("tokenizers")
gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


def written(target: Gguf, model: Any, assignment: Assignment, folder: Path) -> Shipped:
    """The file, without running it."""
    shipped = Shipped.of(model, replace(assignment, numerics=target.numerics))
    target.write(shipped, folder)
    return shipped


CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {}),
    ("llama", {"hidden": 96, "inner": 160}),
    ("mistral", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32}),
    ("gemma", {"head_dim": 64}),
    ("gemma2", {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 4}),
)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(("kind", "more"), CASES, ids=lambda value: str(value))
def test_llama_cpp_computes_what_the_simulation_does(
    kind: str, more: dict[str, Any], tokenizer: str, tmp_path: Path
) -> None:
    """All types mixed, embedding and head too: weights bit for bit, the median prompt to 1e-4."""
    model, target = network(kind, **more), Gguf(tokenizer)

    check = ship(
        target, f"gguf:tokenizer={tokenizer}", assigned(model, *ALL), tmp_path / "out", model,
        examples(),
    )  # fmt: skip

    assert check.max_weight_difference == 0.0
    assert check.median_difference < 1e-4 * check.spread
    assert sum(check.kinds.values()) == check.num_layers > 12
    assert (tmp_path / "out" / "export.json").is_file()


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mix", [("wmxfp4",), ("wnvfp4",), ("w4", "wmxfp4", "wnvfp4")], ids=str)
def test_llama_cpp_computes_microscaling_weights(
    mix: tuple[str, ...], tokenizer: str, tmp_path: Path
) -> None:
    """Decoded bit for bit, embedding and head too; inputs are rounded in blocks of 32."""
    model, target = network("llama", 128, 192), Gguf(tokenizer)

    check = ship(
        target, f"gguf:tokenizer={tokenizer}", assigned(model, *mix), tmp_path / "out", model,
        examples(),
    )  # fmt: skip

    assert check.max_weight_difference == 0.0
    assert check.median_difference < 1e-4 * check.spread
    assert {text[1:].upper() for text in mix if len(text) > 2} <= set(check.kinds)


def plain_bytes(model: Any) -> int:
    """Matrices as they are, vectors in float32."""
    return sum(p.numel() * (p.element_size() if p.ndim > 1 else 4) for p in model.parameters())


@pytest.mark.usefixtures("same_process")
def test_a_matrix_in_half_precision_reads_rounded_inputs(tokenizer: str, tmp_path: Path) -> None:
    """As llama.cpp has it: without that the median prompt would be 1e-2 away."""
    model = network("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()

    check = ship(
        Gguf(tokenizer), f"gguf:tokenizer={tokenizer}", assigned(model, "fp32"), tmp_path / "out",
        model, examples(),
    )  # fmt: skip

    assert check.kinds == {"BF16": 16}
    assert check.median_difference < 1e-4 * check.spread


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_network_in_half_precision_stays_so(
    dtype: torch.dtype, tokenizer: str, tmp_path: Path
) -> None:
    """Matrices that are not quantized, and the inputs they read; norms are float32 there."""
    model = network("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)

    check = ship(
        Gguf(tokenizer), f"gguf:tokenizer={tokenizer}", assigned(model, "w4", "fp32", "w8g32"),
        tmp_path / "out", model, examples(),
    )  # fmt: skip

    assert check.dtype == str(dtype).removeprefix("torch.")
    assert check.max_weight_difference == 0.0
    # Many more ties than without half precision: held against what those move.
    assert check.median_difference <= check.accepted_difference < 0.2 * check.spread
    kind = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert check.kinds[kind] > 2
    reader = gguf.GGUFReader(tmp_path / "out" / FILE)
    stored = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert stored == check.predicted_bytes
    task = mpq.Task(model, examples(), to=f"gguf:tokenizer={tokenizer}", candidates=["fp32"])
    pricing = mpq.Session.of(task).prepared.pricing
    columns = np.zeros(len(pricing.layers), int)
    assert pricing.table("weight_bytes", task.precisions).total(columns) == plain_bytes(model)


@pytest.mark.usefixtures("same_process")
def test_llama_3_stretches_positions(tokenizer: str, tmp_path: Path) -> None:
    """By factors in a tensor of their own; queries and keys have biases in the order of rows."""
    rope = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    model = network("llama", 64, 96, rope_parameters=rope, attention_bias=True)

    check = ship(
        Gguf(tokenizer), f"gguf:tokenizer={tokenizer}", assigned(model, "fp32"), tmp_path / "out",
        model, examples(length=24),
    )  # fmt: skip

    assert check.max_difference < 1e-4 * check.spread


def test_a_trained_network_runs_with_its_tokenizer(
    data_dir: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama of the TinyStories: what the runtime loses is what the simulation said."""
    monkeypatch.syspath_prepend(str(root / "examples"))
    stories: Any = importlib.import_module("llama_stories_transformers")
    stories.save_tokenizer(tmp_path / "tok")
    model = stories.make_net()
    tokens = np.load(data_dir / "llm" / "tokens.npz")["valid_excerpt"].astype(np.int64)
    data = Calibration([{"input_ids": torch.from_numpy(tokens[: 16 * 16].reshape(16, 16))}])
    assignment = assigned(model, "w4", "w5g32", "w8", "w6", "w4g32")

    check = ship(
        Gguf(str(tmp_path / "tok")), f"gguf:tokenizer={tmp_path / 'tok'}", assignment,
        tmp_path / "out", model, data,
    )  # fmt: skip

    assert check.max_weight_difference == 0.0
    assert check.median_difference < 0.02 * check.spread
    assert check.kl_from_original_nats == pytest.approx(check.kl_of_simulation_nats, rel=0.1)


def test_the_file_is_as_large_as_the_search_counts(tokenizer: str, tmp_path: Path) -> None:
    """Every tensor's bytes, to the byte."""
    model, target = network("llama"), Gguf(tokenizer)

    shipped = written(target, model, assigned(model, *ALL), tmp_path)
    reader = gguf.GGUFReader(tmp_path / FILE)

    stored = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert stored == predicted_bytes(target, shipped)
    assert (tmp_path / FILE).stat().st_size <= stored + target.header_bytes(tmp_path)


def test_two_bits_go_where_they_are_told(tokenizer: str, tmp_path: Path) -> None:
    """TQ2_0 is smaller; Q2_K is for machines that do not know it."""
    model, kinds = network("llama"), dict[str, set[str]]()

    for two_bits in ("TQ2_0", "Q2_K"):
        folder = tmp_path / two_bits
        folder.mkdir()
        written(Gguf(tokenizer, two_bits), model, assigned(model, "w2"), folder)
        reader = gguf.GGUFReader(folder / FILE)
        kinds[two_bits] = {tensor.tensor_type.name for tensor in reader.tensors}

    assert kinds == {"TQ2_0": {"TQ2_0", "F32"}, "Q2_K": {"Q2_K", "F32"}}
    recipe = (folder / "llama-quantize.txt").read_text(encoding="utf-8")
    assert "NOT mpq's codes" in recipe
    assert r'--tensor-type "^blk\.1\.attn_q\.weight$=q2_k"' in recipe


def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_found(
    tokenizer: str, tmp_path: Path
) -> None:
    """The samples are cut by both, and must be cut alike."""
    model = network("llama", 64, 96)
    written(Gguf(tokenizer), model, assigned(model, "fp32"), tmp_path)
    samples = json.loads((tmp_path / CHECK).read_text(encoding="utf-8"))
    (tmp_path / CHECK).write_text(json.dumps({text: ids[1:] for text, ids in samples.items()}))

    with pytest.raises(ModelError, match="llama.cpp cuts 'Hello world' into the tokens"):
        Gguf(tokenizer).load(tmp_path)


def test_a_server_has_answered_before_it_can_be_dropped(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its loop: one that is dropped before that begins waits for it for ever, now and then."""
    asked: list[str] = []
    ask = runtime._ask

    def recording(server: Any, what: str, question: Mapping[str, Any]) -> Any:
        asked.append(what)
        return ask(server, what, question)

    monkeypatch.setattr(runtime, "_ask", recording)
    model = network("llama", 64, 96)
    written(Gguf(tokenizer), model, assigned(model, "fp32"), tmp_path)
    Gguf(tokenizer).load(tmp_path)

    assert asked[0] == "completion"


def test_without_a_tokenizer_nothing_is_written(tmp_path: Path) -> None:
    """A network that was not loaded from a folder has none; the option names one."""
    model = network("llama", 64, 96)

    with pytest.raises(ModelError, match="tokenizer.json, --to gguf:tokenizer=FOLDER"):
        ship(Gguf(), "gguf", assigned(model, "w8"), tmp_path / "out", model, examples())
    with pytest.raises(ModelError, match="tokenizer.json, --to gguf:tokenizer=FOLDER"):
        mpq.search(mpq.Task(model, examples(), to="gguf"), ["weight_bytes=1MiB"])

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
        (
            {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"},
            ]},
            "smollm",
        ),
    ],
)  # fmt: skip
def test_rules_of_cutting_have_names_there(cut: dict[str, Any], name: str) -> None:
    """Those that are known; another one is refused and not guessed."""
    from mpq.backends.gguf.vocabulary import _rule

    assert _rule(cut) == name
    with pytest.raises(ModelError, match="no converter for how this tokenizer cuts text"):
        _rule({"type": "Whitespace"})


@pytest.mark.parametrize(
    ("kind", "more", "sentence"),
    [
        ("gpt_neox", {}, "no converter for a GPTNeoXForCausalLM"),
        ("llama", {"hidden_act": "gelu"}, "llama.cpp computes silu in llama, and this is gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embeddings of the type 'dynamic'",
        ),
        (
            "gemma2",
            {"head_dim": 64, "query_pre_attn_scalar": 32},
            "head_dim, 64, and not of query_pre_attn_scalar, 32",
        ),
    ],
)
def test_networks_that_llama_cpp_computes_otherwise_are_refused(
    kind: str, more: dict[str, Any], sentence: str, tokenizer: str, tmp_path: Path
) -> None:
    """By what differs, and nothing is left behind."""
    model = network(kind, **more)

    with pytest.raises(ModelError, match=sentence):
        ship(Gguf(tokenizer), "gguf", assigned(model, "fp32"), tmp_path / "out", model, examples())
    with pytest.raises(ModelError, match=sentence):  # and a search estimates nothing
        mpq.search(
            mpq.Task(model, examples(), to=f"gguf:tokenizer={tokenizer}"), ["weight_bytes=1MiB"],
            sensitivity="weight-error",
        )  # fmt: skip

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        ("w4z", "symmetric weights only"),
        ("fp8", "no weights in fp8_e4m3"),
        ("w4a8", "llama.cpp rounds inputs to int8 by itself and not to int8: write w4a32"),
        ("w4g128a16", "not to fp16: write w4g128a32"),
        ("w16a32", "rounds the inputs of weights in fp16 alike"),
        ("w4g48", "groups of 48 are no whole blocks of 32"),
        ("w3g64", "w4g64 takes the room"),
    ],
)
def test_precisions_that_it_lacks_are_refused(precision: str, sentence: str) -> None:
    """With the layer's name, before anything is written."""
    model = network("llama")
    layers = assigned(model, "fp32").layers
    parsed = mpq.Precision.parse(precision)
    changed = tuple(replace(x, precision=parsed) if "q_proj" in x.name else x for x in layers)

    with pytest.raises(PrecisionError, match=r"self_attn.q_proj.*" + sentence):
        Gguf().check(changed)


def test_an_unknown_type_for_two_bits_is_refused() -> None:
    """By the names of those that there are."""
    with pytest.raises(InputError, match="two_bits is TQ2_0 or Q2_K; got 'Q4_K'"):
        Gguf(two_bits="Q4_K")


def test_padding_is_no_part_of_a_prompt() -> None:
    """On either side; other inputs than ids and a mask are refused."""
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    batch = Batch((), {"input_ids": ids, "attention_mask": mask})

    assert prompts(batch) == [[5, 6], [9, 10]]
    assert last_positions(batch).tolist() == [1, 2]
    assert last_positions(Batch((ids,), {})).tolist() == [2, 2]
    with pytest.raises(InputError, match="an attention_mask, and nothing else; got position_ids"):
        prompts(Batch((), {"input_ids": ids, "position_ids": ids}))
