"""A Mixtral of transformers 5, whose experts are two parameters, in a search for a target."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import mpq
from mpq.backends.compressed_tensors import CompressedTensors
from mpq.backends.export_check import ExportCheck
from mpq.backends.fused_experts import (
    expert_matrices,
    expert_names,
    in_checkpoint,
    num_matrices,
)
from mpq.backends.shipping import ship
from mpq.backends.vllm import fused
from mpq.cli.console import print_result
from mpq.errors import PrecisionError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.llamas import examples, mixtral
from tests.backends.searches import refused

pytestmark = pytest.mark.usefixtures("same_process")


@pytest.mark.parametrize("to", ["onnx-qdq", "openvino"])
def test_experts_that_are_looped_over_are_refused(to: str) -> None:
    """A Mixtral of transformers, whose loop depends on the numbers."""
    pytest.importorskip("onnxscript")
    why = refused(mixtral(), examples(), to, "weight_bytes=0.9x:w8")

    assert "'model.layers.0.mlp.experts' depends on the numbers" in why


def test_fused_experts_stay_and_are_named_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """transformers keeps all experts of a block in one parameter, which is no linear layer."""
    pytest.importorskip("torchao")
    model, data = mixtral(), examples()
    task = mpq.Task(model, data, to="torchao", candidates=["w4g32", "w8"])

    result = mpq.search(task, ["weight_bytes=1MiB"], sensitivity="weight-error")
    mpq.export(result.assignment, tmp_path / "out", "torchao", model, data)
    print_result(result, Console(width=200))

    experts = {x.name for x in result.assignment.layers if ".experts" in x.name}
    quantized = {x.name for x in result.assignment.layers if x.precision != ORIGINAL}
    assert experts
    assert experts <= set(result.provenance.unshipped)
    assert {f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"} <= quantized
    first = capsys.readouterr().out.lstrip().partition("\n")[0]
    unshipped = result.provenance.unshipped
    count = f"{len(unshipped)} of {len(result.assignment.layers)} layers stay as they came"
    assert first.startswith(f"{count}, as torchao holds none of their candidates: ")
    assert "it has no module of its own" in unshipped[min(experts)]


def test_experts_that_are_one_parameter_are_no_group_of_vllm() -> None:
    """What readers fuse beside them are q, k and v."""
    names = [layer.name for layer in Network.of(mixtral(), examples()).layers]

    groups = fused(names)

    assert sum(".experts" in name for name in names) > 3
    assert groups == (tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkv"),)


def shipped_to(
    model: Any, precisions: Mapping[str, str], folder: Path, data: Any = None
) -> ExportCheck:
    """Exports a network whose layers have the precision of the first part that their name has."""
    network = Network.of(model, Calibration(data or examples()))
    layers = []
    for layer in network.layers:
        text = next((text for part, text in precisions.items() if part in layer.name), "fp32")
        shape = layer.weight_shape
        layers.append(AssignedLayer(layer.name, layer.kind, shape, Precision.parse(text)))
    assignment = Assignment(tuple(layers), weight_range="minmax")
    name = "compressed-tensors"
    return ship(CompressedTensors(), name, assignment, folder, model, data or examples())


@pytest.mark.parametrize("precision", ["w3a32", "w4g32a32", "w5ta32", "w8a32"])
def test_fused_experts_are_stored_one_by_one_and_decoded_alike(
    precision: str, tmp_path: Path
) -> None:
    """Bit for bit, beside layers in other precisions, in exactly the bytes that are promised."""
    model = mixtral(num_hidden_layers=2)

    check = shipped_to(model, {".experts": precision, "q_proj": "w4a32", "k_proj": "w4a32",
                               "v_proj": "w4a32", "o_proj": "w6a32"}, tmp_path / "out")  # fmt: skip

    assert (check.max_weight_difference, check.max_difference) == (0.0, 0.0)
    headers = CompressedTensors().header_bytes(tmp_path / "out")
    assert check.file_bytes == check.predicted_bytes + headers
    bits = Precision.parse(precision).weight.number.bits
    assert check.kinds[f"experts pack-quantized, {bits} bits"] == 8
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("gate_up_proj" in name for name in stored)
    shape = stored["model.layers.1.block_sparse_moe.experts.1.w3.weight_shape"]
    assert shape.tolist() == [96, 64]


def test_a_search_gives_all_fused_experts_one_precision(tmp_path: Path) -> None:
    """Across blocks: the loader knows one scheme for them; and what comes out is exported."""
    pytest.importorskip("compressed_tensors")
    model, data = mixtral(num_hidden_layers=2), examples()
    task = mpq.Task(model, data, to="compressed-tensors", candidates=["w3", "w8"])

    result = mpq.search(task, {"weight_bytes": "0.6x:w8"}, sensitivity="weight-error")
    mpq.export(result.assignment, tmp_path / "out", "compressed-tensors", model, data)

    experts = {x.precision for x in result.assignment.layers if ".experts" in x.name}
    others = {x.precision for x in result.assignment.layers if "_proj" in x.name} - experts
    assert len(experts) == 1
    assert experts != {ORIGINAL}
    assert others


def test_fused_experts_in_two_precisions_are_refused(tmp_path: Path) -> None:
    """By name, before anything is written: the loader would decode one of them wrongly."""
    with pytest.raises(PrecisionError, match="is at w3a32 and .* at w4a32, and readers fuse"):
        shipped_to(mixtral(), {"experts.gate_up": "w3a32", "experts": "w4a32"}, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["w8a8d", "wfp8a32"])
def test_precisions_that_fused_experts_are_refused_in(precision: str, tmp_path: Path) -> None:
    """Their inputs are no module's, and floats were not tried."""
    with pytest.raises(PrecisionError, match="fused experts are integers of 2 to 8 bits"):
        shipped_to(mixtral(), {".experts": precision}, tmp_path / "out")


def test_fused_experts_of_networks_in_half_precision_stay() -> None:
    """The loader decodes to the dtype of the scales, which would round once more."""
    pytest.importorskip("compressed_tensors")
    model = mixtral()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    task = mpq.Task(model, examples(), to="compressed-tensors", candidates=["w8"])

    result = mpq.search(task, ["weight_bytes=1MiB"], sensitivity="weight-error")

    why = result.provenance.unshipped["model.layers.0.mlp.experts.down_proj.0"]
    assert "the dtype of their scales: search and export model.float()" in why


def test_one_expert_without_data_keeps_the_others(tmp_path: Path) -> None:
    """What the loader decodes by one scheme is quantized as a whole, or not at all."""
    pytest.importorskip("compressed_tensors")
    model = mixtral(num_local_experts=3)
    router = model.model.layers[0].mlp.gate
    # The third expert's rows say the opposite of the first one's, so that it is never chosen...
    router.weight.data[2] = 0.0
    router.weight.data[0] = router.weight.data[1].neg()  # ...as one of these is above 0.
    model.config.num_experts_per_tok = router.top_k = 1
    task = mpq.Task(model, examples(), to="compressed-tensors", candidates=["w8"])

    result = mpq.search(task, ["weight_bytes=1MiB"], sensitivity="weight-error")
    mpq.export(result.assignment, tmp_path / "out", "compressed-tensors", model, examples())

    unshipped = result.provenance.unshipped
    assert "model.layers.0.mlp.experts.down_proj.2" not in unshipped
    why = unshipped["model.layers.0.mlp.experts.down_proj.0"]
    assert "readers fuse it with 'model.layers.0.mlp.experts.gate_up_proj.2'" in why


def test_matrices_of_experts_are_those_of_the_checkpoint() -> None:
    """What transformers writes under these names are these rows."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=3, vocab_size=64,
        decoder_sparse_step=1, mlp_only_layers=[1],
    )  # fmt: skip
    model = transformers.Qwen3MoeForCausalLM(config)

    found = expert_matrices(model)
    saved = in_checkpoint(model, model.state_dict())

    assert len(found) == 6
    for layer, matrices in found.items():
        name, _, expert = layer.rpartition(".")
        whole = model.get_parameter(name)[int(expert)]
        assert len(matrices) == num_matrices(layer)
        for matrix in matrices:
            assert torch.equal(whole[matrix.rows], saved[f"{matrix.name}.weight"])


def test_a_network_that_was_loaded_has_the_same_matrices(tmp_path: Path) -> None:
    """Its own conversions are asked then, and not those of its kind."""
    model = mixtral()
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path)

    assert expert_matrices(loaded) == expert_matrices(model)
    assert len(expert_matrices(loaded)) == 4


def test_experts_that_checkpoints_have_stacked_have_no_matrices() -> None:
    """gpt-oss: one tensor in the file, too, and [I, O] in it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GptOssConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, num_local_experts=2, vocab_size=64,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config)

    assert expert_matrices(model) == {}
    assert len(list(expert_names(dict(model.named_modules())))) == 4
