"""compressed-tensors: what transformers loads computes what the simulation computes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mpq
from mpq.backends import compressed_tensors
from mpq.backends.compressed_tensors import CompressedTensors
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped
from mpq.errors import MissingDependencyError, ModelError, PrecisionError
from mpq.network.examples import Calibration
from mpq.network.layer import Layer
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.llamas import examples, in_turn, llama

pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

MIXED = (
    "w4a32", "w3a32", "w8a8", "fp8", "w8a8sd", "w4g32a32", "w5a32", "w8a8d", "w2a32", "w7ta32",
    "w4a8", "w8a8s", "wfp8a32", "w3g16a8d",
)  # fmt: skip


DATA = Calibration(examples())


def test_a_mixed_network_is_the_simulation_in_transformers(tmp_path: Path) -> None:
    """Bit for bit in float32, with every scheme there is; generation works; the rest stays."""
    model, target = llama(tie_word_embeddings=True, num_hidden_layers=4), CompressedTensors()
    mixed = in_turn(model, target, MIXED)

    check = ship(target, "compressed-tensors", mixed, tmp_path / "out", model, DATA)

    assert check.num_layers == 28
    assert len({x.precision for x in mixed.layers}) == len(MIXED) + 1
    assert check.max_weight_difference == 0.0
    assert check.max_difference <= 1e-6
    assert check.file_bytes == check.predicted_bytes + target.header_bytes(tmp_path / "out")
    assert sum(check.kinds.values()) == 28
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    named = [name for group in config["config_groups"].values() for name in group["targets"]]
    assert len(named) == len(set(named)) == 28
    assert config["ignore"] == ["lm_head"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = loaded.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    assert tokens.shape == (1, 7)


def test_microscaling_weights_of_a_network_in_bf16(tmp_path: Path) -> None:
    """Decoded bit for bit, mixed with others; transformers runs the folder in bf16."""
    model, target = llama(), CompressedTensors(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    mixed = in_turn(model, target, ("wmxfp4", "wnvfp4", "wmxfp8", "w4g32"))

    check = ship(target, "compressed-tensors", mixed, tmp_path / "out", model, DATA)

    assert check.max_weight_difference == 0.0
    assert check.max_difference <= 1e-6
    assert check.file_bytes == check.predicted_bytes + target.header_bytes(tmp_path / "out")
    assert {kind.split()[1].rstrip(",") for kind in check.kinds} == {
        "mxfp4-pack-quantized", "nvfp4-pack-quantized", "mxfp8-quantized", "pack-quantized"
    }  # fmt: skip
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16
    )
    assert loaded(examples()[0]["input_ids"]).logits.dtype == torch.bfloat16


def bf16_llama(scales: dict[str, float]) -> torch.nn.Module:
    """With the weights of some layers times something, by the last part of their names."""
    model: torch.nn.Module = llama()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.bfloat16()
        parameter.data *= scales.get(name.split(".")[-2], 1.0)
    return model


@pytest.mark.usefixtures("same_process")
def test_fused_layers_have_one_scale_for_all_in_nvfp4(tmp_path: Path) -> None:
    """vLLM takes the largest it finds for all of them; apart they would be 64 times off."""
    model, target = (
        bf16_llama({"k_proj": 1 / 64, "up_proj": 8.0}),
        CompressedTensors(torch.bfloat16),
    )

    check = ship(
        target, "compressed-tensors", in_turn(model, target, ("wnvfp4",)), tmp_path / "out", model,
        DATA,
    )  # fmt: skip

    assert check.max_weight_difference == 0.0
    safetensors = pytest.importorskip("safetensors.torch")
    stored = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    for parts in (("q", "k", "v"), ("gate", "up")):
        place = "model.layers.0." + ("self_attn" if "q" in parts else "mlp")
        wholes = {float(stored[f"{place}.{x}_proj.weight_global_scale"]) for x in parts}
        assert len(wholes) == 1
    assert len({float(x) for name, x in stored.items() if name.endswith("global_scale")}) > 1


def test_fused_layers_too_far_apart_for_one_scale_are_refused(tmp_path: Path) -> None:
    """By name, and nothing is left behind."""
    model, target = bf16_llama({"k_proj": 2.0**-20}), CompressedTensors(torch.bfloat16)
    mixed = in_turn(model, target, ("wnvfp4",))

    with pytest.raises(ModelError, match="below which those of '.*k_proj' are no fp8 numbers"):
        ship(target, "compressed-tensors", mixed, tmp_path / "out", model, DATA)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spelling", "dtype", "num_inputs", "why"),
    [
        ("wmxfp4", torch.float32, 64, "decodes mxfp4 to bf16 .* load the network with dtype"),
        ("wnvfp4", torch.float16, 64, "decodes nvfp4 to bf16"),
        ("wmxfp8", torch.bfloat16, 48, "48 inputs are no whole groups of 32"),
        ("wnvfp4", torch.bfloat16, 40, "40 inputs are no whole groups of 16"),
        ("wnvfp4a8", torch.bfloat16, 64, "weights in nvfp4 have inputs in floating point"),
        ("wmxfp8afp8", torch.bfloat16, 64, "weights in mxfp8 have inputs in floating point"),
    ],
)
def test_microscaling_weights_are_refused_elsewhere(
    spelling: str, dtype: torch.dtype, num_inputs: int, why: str
) -> None:
    """Where transformers would not multiply by them, blocks are not whole, or inputs rounded."""
    layer = Layer("layer", "linear", (8, num_inputs), 8, (1,), (1,), 1, 1, 1)

    assert re.search(why, CompressedTensors(dtype).refusal(layer, Precision.parse(spelling)))


@pytest.mark.parametrize(
    ("spelling", "shape", "why"),
    [
        ("w4za32", (8, 64), "no mix of weights with zero points"),
        ("w4g128a32", (8, 64), "64 inputs are no whole groups of 128"),
        ("w4a4", (8, 64), "rounds no inputs to int4"),
        ("wfp8a8", (8, 64), "fp8 weights have inputs in fp8"),
        ("w8afp8", (8, 64), "integer weights have inputs in int8"),
        ("wfp4a32", (8, 64), "no weights of fp4_e2m1"),
        ("w4a32", (8, 3, 3, 3), "of the kind conv2d"),
    ],
)
def test_refusals_name_the_reason(spelling: str, shape: tuple[int, ...], why: str) -> None:
    """Before anything is written."""
    kind = "linear" if len(shape) == 2 else "conv2d"
    layer = Layer("layer", kind, shape, shape[0], (1,), (1,), 1, 1, 1)

    assert why in CompressedTensors().refusal(layer, Precision.parse(spelling))


def test_layers_that_readers_fuse_must_share_a_precision(tmp_path: Path) -> None:
    """Else vLLM would take the scheme of the first part, or break down: named before writing."""
    model, target = llama(), CompressedTensors()
    mixed = in_turn(model, target, ("w4", "w8"))
    other = Precision.parse("w5")

    def with_other(name: str) -> mpq.Assignment:
        layers = (replace(x, precision=other) if name in x.name else x for x in mixed.layers)
        return replace(mixed, layers=tuple(layers))

    for name, first in (("k_proj", "q_proj"), ("up_proj", "gate_proj")):
        with pytest.raises(PrecisionError, match=f"{first}' is at w.*{name}' at w5a32.*fuse"):
            ship(target, "compressed-tensors", with_other(name), tmp_path / "out", model, DATA)


def test_a_layer_that_is_fused_with_one_left_out_stays() -> None:
    """Also without the ties of layers that read one tensor; a precision given to it is refused."""
    model = llama()
    rules = mpq.Rules(exclude=["*.k_proj"], find_ties=False)
    task = mpq.Task(model, examples(), to="compressed-tensors", rules=rules)

    prepared = mpq.Session.of(task).prepared

    unshipped = [name for name in prepared.unshipped if "q_proj" in name or "v_proj" in name]
    assert len(unshipped) == 4
    why = prepared.unshipped["model.layers.0.self_attn.q_proj"]
    assert "fuse it with 'model.layers.0.self_attn.k_proj', which is left out" in why
    names = [f"model.layers.{i}.mlp.{part}_proj" for i in range(2) for part in ("gate", "up")]
    assert {tuple(names[:2]), tuple(names[2:])} < set(prepared.ties)
    fixed = replace(rules, fix={"*.0.*.q_proj": "w4a32"})
    with pytest.raises(PrecisionError, match="which is left out"):
        mpq.Session.of(replace(task, rules=fixed)).prepared  # noqa: B018


def test_other_networks_are_refused(tmp_path: Path) -> None:
    """Those that are none of transformers: before a search estimates, and before an export."""
    model = torch.nn.Sequential(torch.nn.Linear(12, 4)).eval()
    data = Calibration([torch.randn(4, 12)])
    layers = [
        AssignedLayer(x.name, x.kind, x.weight_shape, ORIGINAL)
        for x in Network.of(model, data).layers
    ]
    task = mpq.Task(model, [torch.randn(4, 12)], to="compressed-tensors")

    with pytest.raises(ModelError, match="reads networks of transformers"):
        mpq.search(task, ["weight_bytes=100"])
    with pytest.raises(ModelError, match="reads networks of transformers"):
        ship(
            CompressedTensors(), "compressed-tensors", mpq.Assignment(tuple(layers)),
            tmp_path / "out", model, data,
        )  # fmt: skip

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("installed", "is_refused"),
    [("0.9.2", True), ("0.19.1.post2", True), ("0.20.0rc1", True), ("0.20", False),
     ("0.20.0.post1", False), ("0.100.0", False), ("1!0.1.dev3", False)],
)  # fmt: skip
def test_an_older_release_is_refused_before_anything_is_written(
    installed: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read dense layouts as other numbers; releases are compared as pip compares them."""
    model, target = llama(), CompressedTensors()
    shipped = Shipped.of(model, in_turn(model, target, ("w3",)))
    monkeypatch.setattr(compressed_tensors, "version", lambda _: installed)

    if is_refused:
        with pytest.raises(MissingDependencyError, match=f"compressed-tensors {installed} packs 3"):
            target.write(shipped, tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        target.write(shipped, tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
