"""Key-value caches in files: a scheme of compressed-tensors, options of llama.cpp, or refused."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import mpq
from mpq.backends import BACKENDS
from mpq.errors import InputError, PrecisionError
from mpq.network.kept_tokens import KeptTokens
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange

transformers = pytest.importorskip("transformers", minversion="5")

NAMES = [f"model.layers.{i}.self_attn.{kind}" for i in (0, 1) for kind in ("k_cache", "v_cache")]


@cache
def llama() -> Any:
    """Two blocks with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, vocab_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def examples() -> list[dict[str, torch.Tensor]]:
    """Two batches of token ids."""
    draws = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 64, (4, 12), generator=draws)} for _ in range(2)]


def cached(*spellings: str) -> Assignment:
    """Of caches alone, one precision after the other."""
    layers = [
        AssignedLayer(
            name, name.rpartition(".")[2], (2, 16, 0), Precision.parse(f"w32{spelled}"),
            None if spelled.endswith("d") or spelled == "a32" else ActivationRange(-4.0, 5.0),
        )
        for name, spelled in zip(NAMES, spellings, strict=False)
    ]  # fmt: skip
    return Assignment(tuple(layers))


@pytest.mark.parametrize(("spelled", "kind"), [("a8s", "int"), ("afp8", "float")])
def test_compressed_tensors_rounds_keys_and_values_as_the_simulation_does(
    tmp_path: Path, spelled: str, kind: str
) -> None:
    """A search for it, its file, and the tool's own functions, which give the same outputs."""
    pytest.importorskip("compressed_tensors")
    task = mpq.Task(
        llama(), examples(), candidates=["w8"], to="compressed-tensors", rounding="nearest",
        kv_cache=mpq.KVCache(100, [spelled]),
    )  # fmt: skip
    result = mpq.search(task, ["weight_and_cache_bytes=1MB"], sensitivity="sketch")

    found = mpq.export(
        result.assignment, tmp_path / "made", "compressed-tensors", llama(), examples()
    )

    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    scheme = config["kv_cache_scheme"]
    told = scheme["num_bits"], scheme["type"], scheme["strategy"], scheme["dynamic"]
    assert told == (8, kind, "tensor", False)
    assert found.deviation is not None
    assert found.deviation < 1e-5
    # What caches as they came would be apart, so that this is no comparison of nothing.
    without = tuple(x for x in result.assignment.layers if not x.kind.endswith("_cache"))
    both = result.assignment, replace(result.assignment, layers=without)
    with torch.no_grad():
        rounded, plain = (mpq.quantize(llama(), x)(**examples()[0]).logits for x in both)
    assert (rounded - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            cached("a8s", "a8s", "a8s", "a32"),
            "'model.layers.1.self_attn.v_cache' at fp32, and readers fuse",
        ),
        (cached("a8s", "a8s"), "'model.layers.1.self_attn.k_cache' stays as it came"),
        (cached("a8d", "a8d", "a8d", "a8d"), "one calibrated scale, without a zero point"),
        (cached("a8", "a8", "a8", "a8"), "one calibrated scale, without a zero point"),
        (replace(cached(*["a8s"] * 4), tokens_kept=KeptTokens(1)), "keeps the first 1"),
    ],
)
def test_what_its_scheme_does_not_say_is_refused(
    tmp_path: Path, assignment: Assignment, message: str
) -> None:
    """Before anything is written."""
    pytest.importorskip("compressed_tensors")
    with pytest.raises(PrecisionError, match=message):
        mpq.export(assignment, tmp_path / "made", "compressed-tensors", llama(), examples())
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", sorted(part.name for part in BACKENDS if part.caches == "refused"))
def test_what_holds_no_cache_says_so(tmp_path: Path, name: str) -> None:
    """Files and networks alike, with what does hold one; a search for it is refused as well."""

    def made() -> None:
        if BACKENDS.build(name).writes_files:
            mpq.export(cached("a8d"), tmp_path / "made", name, llama(), examples())
        else:
            mpq.quantize(llama(), cached("a8d"), name)

    with pytest.raises(PrecisionError, match=f"{name} holds no key-value cache, and"):
        made()


def test_a_target_without_a_cache_is_refused_before_the_search() -> None:
    """And so are tokens that are kept, with one that has a cache."""
    formats = mpq.KVCache(10, ["a8s"])
    with pytest.raises(InputError, match="openvino holds none"):
        mpq.Task(llama(), examples(), to="openvino", kv_cache=formats)
    with pytest.raises(InputError, match="keeps no tokens as they came"):
        mpq.Task(llama(), examples(), to="compressed-tensors", kv_cache=replace(formats, window=2))


def test_llama_cpp_is_told_one_type_for_keys_and_one_for_values(tmp_path: Path) -> None:
    """The options are those of its programs; what differs from the search stands beside."""
    written = mpq.export(cached("a8d", "a4d", "a8d", "a4d"), tmp_path, "llama-cpp-cache")

    text = written.path.read_text()
    assert text.endswith("--flash-attn on --cache-type-k q8_0 --cache-type-v q4_1\n")
    assert text.startswith("# types of llama.cpp with as many bits, not the codes")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (cached("a8d", "a4d", "a4d", "a4d"), "'model.layers.1.self_attn.k_cache' differ"),
        (cached("a8d", "a32", "a8d", "a4d"), "'model.layers.1.self_attn.v_cache' differ"),
        (cached("a6d", "a6d"), "no setting.*its types are those of a8d"),
        (cached("a32", "a32"), "no key-value cache is quantized"),
    ],
)
def test_llama_cpp_has_no_types_by_layer(
    tmp_path: Path, assignment: Assignment, message: str
) -> None:
    """It says how a search finds what it can be told."""
    with pytest.raises(PrecisionError, match=message):
        mpq.export(assignment, tmp_path / "made", "llama-cpp-cache")


@pytest.mark.parametrize("to", ["compressed-tensors", "llama-cpp-cache"])
def test_no_tool_holds_keys_before_their_rotation(tmp_path: Path, to: str) -> None:
    """It says which option to leave out, in an export and in a search."""
    if to == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
        with pytest.raises(InputError, match="holds keys after their rotation"):
            mpq.Task(llama(), examples(), to=to, kv_cache=mpq.KVCache(9, before_rotation=True))
    spelled = "a8d" if to == "llama-cpp-cache" else "a8s"
    layers = (
        replace(x, name=x.name.replace("k_", "unrotated_k_"), kind="unrotated_k_cache")
        if x.kind == "k_cache"
        else x
        for x in cached(*[spelled] * 4).layers
    )
    with pytest.raises(PrecisionError, match="without --kv-before-rotation"):
        mpq.export(Assignment(tuple(layers)), tmp_path / "made", to, llama(), examples())
