"""The target ``mlx``: folders that mlx-lm loads, runs and decodes as the simulation does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from mpq.backends import shipping
from mpq.backends.export_check import ExportCheck
from mpq.backends.mlx import Mlx, stored_group
from mpq.backends.shipping import ship
from mpq.backends.target import HEADERS, Shipped
from mpq.cli.__main__ import app
from mpq.errors import InputError, ModelError, OutputError, PrecisionError
from mpq.network.examples import Batch
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision
from tests.backends.llamas import examples, in_turn
from tests.backends.llamas import llama as plain_llama

pytest.importorskip("mlx_lm")
transformers = pytest.importorskip("transformers", minversion="5")

MIXES = [
    ("w2", "w3", "w4", "w5", "w6", "w7", "w8"),
    ("w3g32", "w4g64", "w4g128", "w7g32", "w2g64"),
    ("w4z", "w2zg32", "w7zg64", "w8z", "w4t"),
    ("w3g64", "wmxfp4", "wmxfp8", "wnvfp4"),
]

NETWORK = """
from tests.backends.llamas import examples, llama

def model():
    return llama()

def data():
    return examples()
"""


def llama(**options: Any) -> Any:
    """Far from mlx-lm's own base of the rotary embedding."""
    return plain_llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0}, **options)


def after_writing(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    """Changes the tensors of the folder before it is loaded."""
    write = Mlx.write

    def changed(self: Mlx, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(Mlx, "write", changed)


def shipped(folder: Path, model: nn.Module, mix: tuple[str, ...]) -> ExportCheck:
    """Exported, and run by mlx-lm."""
    return ship(Mlx(), "mlx", in_turn(model, Mlx(), mix), folder, model, examples())


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix[0])
def test_mlx_computes_what_the_simulation_does(
    mix: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Weights are decoded to the same numbers, outputs differ in float32's last digits."""
    if mix is not MIXES[0]:  # one of them in a process of its own
        request.getfixturevalue("same_process")
    check = shipped(tmp_path / "out", llama(), mix)

    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread
    assert check.num_layers == 16
    assert sum(check.kinds.values()) == 16
    assert all("Quantized" in kind for kind in check.kinds)
    assert check.predicted_bytes <= check.file_bytes <= check.predicted_bytes + HEADERS


@pytest.mark.usefixtures("same_process")
def test_microscaling_layers_of_a_network_in_half_precision(tmp_path: Path) -> None:
    """Their scales stay bytes, whatever the rest is stored and compared in."""
    model = llama()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()

    check = shipped(tmp_path / "out", model, MIXES[-1])

    assert check.dtype == "bfloat16"
    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread


def test_the_command_line_searches_and_exports_microscaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh process; a target that lacks a format says so before it writes."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK, encoding="utf-8")
    given = ["--model", "net.py:model", "--data", "net.py:data"]
    asked = ["--precisions", "mxfp4,nvfp4,mxfp8,w3g32", "--limit", "weight_bytes=60KiB"]

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, *given])

    found = run("search", "--to", "mlx", *asked, "--output", "run")
    exported = run("export", "run", "--to", "mlx", "--output", "out")
    refused = run("export", "run", "--to", "auto-round", "--output", "other")

    assert (found.exit_code, exported.exit_code) == (0, 0), exported.output
    told = json.loads(Path("out/export.json").read_text())
    assert told["max_weight_difference"] == 0.0
    assert told["max_difference"] < 1e-5 * told["spread"]
    assert told["was_searched_for"]
    assert any(kind.endswith(("mxfp4", "nvfp4", "mxfp8")) for kind in told["kinds"])
    assert refused.exit_code != 0
    assert not Path("other").exists()
    assert "it holds integers of 2 to 8 bits, and no" in " ".join(refused.output.split())


@pytest.mark.usefixtures("same_process")
def test_a_shared_embedding_is_stored_once(tmp_path: Path) -> None:
    """It is the last layer, too; both are decoded."""
    check = shipped(tmp_path / "tied", llama(tie_word_embeddings=True), ("w4g32",))
    apart = shipped(tmp_path / "apart", llama(), ("w4g32",))

    assert check.num_layers == apart.num_layers == 16
    assert sum(check.kinds.values()) == 16
    # 4 bits and a fp16 scale and bias for every 32 weights.
    assert apart.predicted_bytes - check.predicted_bytes == 128 * 64 // 32 * (16 + 4)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm"),
        ("model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.k_proj"),
        ("model.layers.1.mlp.down_proj.bias", "model.layers.1.mlp.down_proj"),
        ("model.norm.weight", "model.norm"),
    ],
)
def test_the_first_layer_that_computes_something_else_is_named(
    tensor: str,
    layer: str,
    is_tied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Its weight is decoded alike; what is added, or what a norm multiplies by, is another one."""
    if is_tied or layer != "model.norm":  # one of them in a process of its own
        request.getfixturevalue("same_process")
    model = llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=is_tied)
    after_writing(monkeypatch, lambda tensors: tensors[tensor].add_(0.5))

    with pytest.raises(
        ModelError, match=rf"decoded alike\. the first layer [a-z ]* is '{layer}', by"
    ):
        shipped(tmp_path / "out", model, ("w4g32", "w8"))

    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("same_process")
def test_a_head_that_is_the_embedding_is_named_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no module of the tool's, which asks the embedding for logits."""
    import mlx.nn

    as_linear = mlx.nn.QuantizedEmbedding.as_linear
    monkeypatch.setattr(
        mlx.nn.QuantizedEmbedding, "as_linear", lambda self, x: as_linear(self, x) + 1.0
    )

    with pytest.raises(ModelError, match=r"of what it reads is 'lm_head', by 1 "):
        shipped(tmp_path / "out", llama(tie_word_embeddings=True), ("w4g32",))


@pytest.mark.usefixtures("same_process")
def test_a_traced_network_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modules have their classes, and nothing is run again where outputs agree."""
    monkeypatch.setattr(shipping, "trace_fresh", lambda *_: pytest.fail("it was run again"))
    shipped(tmp_path / "out", llama(), ("w4g32",))
    loaded: Any = Mlx().load(tmp_path / "out")
    kinds = {name: type(part) for name, part in loaded.module.named_modules()}
    batch = Batch((), {"input_ids": examples()[0]["input_ids"][:2]})

    found = loaded.traced(batch)

    assert {name: type(part) for name, part in loaded.module.named_modules()} == kinds
    assert torch.equal(found["output:lm_head"], loaded.run(batch))
    assert torch.equal(found["input:lm_head"], found["output:model.norm"])


@pytest.mark.usefixtures("same_process")
def test_layers_that_stay_are_said_to(tmp_path: Path) -> None:
    """Every layer has an entry of its own, so that no reader has to guess."""
    model = llama()
    found = in_turn(model, Mlx(), ("w3g64", "fp32"))
    ship(Mlx(), "mlx", found, tmp_path / "out", model, examples())

    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]

    for layer in found.layers:
        expected: Any = False
        if layer.precision != Precision.parse("fp32"):
            group = stored_group(layer.weight_shape[1], layer.precision)
            expected = {"group_size": group, "bits": 3, "mode": "affine"}
        assert told[layer.name] == expected


@pytest.mark.parametrize(
    ("kind", "shape", "precision", "why"),
    [
        ("linear", (8, 64), "w8a8", "rounds no inputs"),
        ("linear", (8, 64), "wfp8", "integers of 2 to 8 bits, and no fp8_e4m3"),
        ("linear", (8, 64), "wfp4", "integers of 2 to 8 bits, and no fp4_e2m1"),
        ("linear", (8, 64), "w4g16", "16 is no multiple"),
        ("linear", (8, 48), "wmxfp4", "48 inputs are no whole groups of 32"),
        ("linear", (8, 48), "wmxfp8", "48 inputs are no whole groups of 32"),
        ("linear", (8, 40), "wnvfp4", "40 inputs are no whole groups of 16"),
        ("linear", (8, 64), "wmxfp4a8", "rounds no inputs"),
        ("embedding", (8, 64), "wmxfp4", "rows of an embedding in mxfp4 in bf16"),
        ("conv2d", (8, 32, 1, 1), "wnvfp4", "a layer of the kind conv2d"),
        ("linear", (8, 48), "w4", "48 inputs are no whole groups of 32"),
        ("conv2d", (8, 32, 1, 1), "w4", "a layer of the kind conv2d"),
    ],
)
def test_what_mlx_cannot_hold_is_refused(
    kind: str, shape: tuple[int, ...], precision: str, why: str
) -> None:
    """With the layer's name and the reason."""
    layer = AssignedLayer("fc", kind, shape, Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'fc' at .*{why}"):
        Mlx().check([layer])


@pytest.mark.parametrize(
    ("num_inputs", "precision", "group"),
    [(64, "w4", 64), (160, "w4", 32), (256, "w4", 128), (160, "w4g128", 32), (512, "w4g96", 32)],
)
def test_a_stored_group_lies_within_one_scale(num_inputs: int, precision: str, group: int) -> None:
    """The largest of the tool's sizes that divides both the row and the precision's group."""
    assert stored_group(num_inputs, Precision.parse(precision)) == group


def test_a_network_that_mlx_lm_lacks_is_refused(tmp_path: Path) -> None:
    """By its name; nothing is left behind."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        hidden_size=64, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128,
        word_embed_proj_dim=64,
    )  # fmt: skip

    with pytest.raises(ModelError, match="has no 'opt' networks"):
        shipped(tmp_path / "out", transformers.OPTForCausalLM(config).eval(), ("w4",))

    assert not list(tmp_path.iterdir())


def test_examples_with_padding_are_refused(tmp_path: Path) -> None:
    """mlx-lm's networks read no mask, and would compute something else."""
    model = llama()
    mask = torch.ones(8, 24, dtype=torch.long)
    mask[:, 20:] = 0
    padded = [{**examples()[0], "attention_mask": mask}]

    with pytest.raises(InputError, match="token ids alone"):
        ship(Mlx(), "mlx", in_turn(model, Mlx(), ("w4",)), tmp_path / "out", model, padded)


def test_half_of_a_shared_parameter_is_refused(tmp_path: Path) -> None:
    """The tool has one of both."""
    model = llama(tie_word_embeddings=True)
    found = in_turn(model, Mlx(), ("w4",))
    alone = Assignment(tuple(x for x in found.layers if x.name != "lm_head"), weight_range="minmax")

    with pytest.raises(ModelError, match="shares its weight with 'lm_head'"):
        ship(Mlx(), "mlx", alone, tmp_path / "out", model, examples())


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    (tmp_path / "kept").write_text("mine")

    with pytest.raises(OutputError, match="is there already"):
        shipped(tmp_path, llama(), ("w4",))
