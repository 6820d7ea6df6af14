"""The target ``auto-round``: codes as GPTQ lays them out, and what AutoRound computes with them."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import mpq
from mpq.backends.auto_round import CONTAINERS, AutoRound
from mpq.backends.shipping import ship
from mpq.backends.stored import predicted_bytes
from mpq.backends.target import HEADERS, Shipped
from mpq.errors import ModelError, PrecisionError, UnknownNameError
from mpq.network.weight_layout import layout_of
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.codes import unpacked
from mpq.quantization.precision import Precision
from tests.backends.llamas import examples, in_turn, llama
from tests.backends.negated import negated

SYMMETRIC = ("w4", "w3g32", "w2", "w8g64", "w4g32", "w5", "w7g32", "w4t", "w6")
AFFINE = ("w4z", "w3zg32", "w2zg32", "w8z", "w4g64", "w5z", "w3")
WITHOUT_READER = "pip install 'mpq[auto-round]'"


def written(
    folder: Path, target: AutoRound, mix: tuple[str, ...], is_negated: bool = False
) -> Shipped:
    """A small Llama in the precisions in turn, as the target writes it."""
    model = llama()
    assignment = in_turn(model, target, mix)
    numbers = Assignment(assignment.layers, weight_range="minmax", numerics=target.numerics)
    shipped = Shipped.of(model, negated(model, numbers) if is_negated else numbers)
    target.write(shipped, folder)
    return shipped


@pytest.mark.parametrize(
    ("method", "mix", "is_negated"),
    [
        ("auto-round", SYMMETRIC, False), ("auto-round", SYMMETRIC, True),
        ("auto-round", AFFINE, False), ("gptq", SYMMETRIC, False),
    ],
    ids=["symmetric", "negative", "affine", "gptq"],
)  # fmt: skip
def test_the_file_decodes_to_the_simulation(
    tmp_path: Path, method: str, mix: tuple[str, ...], is_negated: bool
) -> None:
    """By GPTQ's formula, scale * (code - zero point), from the tensors alone."""
    shipped = written(tmp_path, AutoRound(method), mix, is_negated)

    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    less = 0 if config["packing_format"] == "auto_round:gptqmodel" else 1
    for layer in shipped.quantized:
        own = {key: tensors[f"{layer.name}.{key}"] for key in ("qweight", "qzeros", "scales")}
        bits, (num_channels, num_inputs) = (
            config["extra_config"][layer.name]["bits"],
            (layer.weight_shape),
        )
        columns = own["qweight"].t().contiguous().view(torch.uint8)
        points = unpacked(own["qzeros"].view(torch.uint8), bits, num_channels) + less  # [G, O]
        of_input = torch.arange(num_inputs) // (num_inputs // len(points))
        codes = unpacked(columns, bits, num_inputs).t()  # [K, O]
        decoded = own["scales"].float()[of_input] * (codes - points[of_input])
        module = shipped.module.get_submodule(layer.name)
        rounded = shipped.quantizer.weight(layer.name, module, layer.precision.weight)
        assert torch.equal(decoded.t(), layout_of(module).to_rows(rounded))
        assert own["scales"].dtype is torch.float16
        assert (f"{layer.name}.g_idx" in tensors) is (method == "gptq")


def test_a_configuration_names_every_layer_twice(tmp_path: Path) -> None:
    """For AutoRound and for GPTQModel, those that stay as well; the most common one is the rest."""
    target = AutoRound()
    shipped = written(tmp_path, target, ("w4g32", "w4g32", "w3", "fp32"))

    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]

    quantized = {layer.name: layer.precision for layer in shipped.quantized}
    names = [n for n, m in shipped.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(config["extra_config"]) == sorted(names)
    for name, entry in config["extra_config"].items():
        bits = quantized[name].weight.number.bits if name in quantized else 16
        assert entry["bits"] == bits
        (key,) = [k for k in config["dynamic"] if re.match(k[2:], name)]
        assert key[:2] == ("+:" if name in quantized else "-:")
        assert config["dynamic"][key].get("bits", 16) == bits
    assert (config["bits"], config["group_size"], config["sym"]) == (4, 32, True)
    files = (tmp_path / "model.safetensors").stat().st_size
    assert 0 <= files - predicted_bytes(target, shipped) <= HEADERS


@pytest.mark.parametrize(
    ("spelling", "shape", "method", "why"),
    [
        ("w4", (30, 64), "auto-round", "30 outputs are no whole words of 32"),
        ("w4", (32, 48), "auto-round", "48 inputs are no whole words of 32"),
        ("w4g16", (32, 64), "auto-round", "of 32, 64 or 128, and not 16"),
        ("w4g64", (32, 96), "auto-round", "96 inputs are no whole groups of 64"),
        ("w4a8", (32, 64), "auto-round", "rounds no inputs"),
        ("wfp8", (32, 64), "auto-round", "no fp8_e4m3"),
        ("w4z", (32, 64), "gptq", "stored less one"),
        ("w4", (32, 3, 3, 3), "auto-round", "of the kind conv2d"),
    ],
)
def test_what_the_format_lacks_is_refused(
    spelling: str, shape: tuple[int, ...], method: str, why: str
) -> None:
    """With the layer's name and the reason."""
    kind = "linear" if len(shape) == 2 else "conv2d"
    layer = AssignedLayer("fc", kind, shape, Precision.parse(spelling))

    with pytest.raises(PrecisionError, match="layer 'fc' at") as error:
        AutoRound(method).check([layer])

    assert why in str(error.value)


def test_other_networks_and_methods_are_refused(tmp_path: Path) -> None:
    """A tied weight, a number beyond fp16, a method that nobody reads."""
    tied, large = llama(tie_word_embeddings=True), llama()
    alone = Assignment((AssignedLayer("lm_head", "linear", (128, 64), Precision.parse("w4")),))
    with torch.no_grad():
        large.model.norm.weight[0] = 1e6

    with pytest.raises(ModelError, match="'lm_head' shares its weight"):
        AutoRound().write(Shipped.of(tied, alone), tmp_path)
    with pytest.raises(ModelError, match=r"'model.norm.weight' has numbers beyond fp16"):
        AutoRound().write(Shipped.of(large, alone), tmp_path)
    with pytest.raises(UnknownNameError, match="awq"):
        AutoRound("awq")


@pytest.mark.parametrize(
    ("spelled", "mix", "file"),
    [
        ("auto-round", SYMMETRIC, "qlinear_torch_zp"),
        ("auto-round", AFFINE, "qlinear_torch"),
        ("auto-round:method=gptq", (*SYMMETRIC[:6], "fp32"), "qlinear_torch_zp"),
    ],
    ids=["symmetric", "affine", "gptq"],
)
def test_auto_round_computes_what_the_simulation_does(
    tmp_path: Path, spelled: str, mix: tuple[str, ...], file: str
) -> None:
    """In a fresh process: weights to the last bit, outputs to the last bits of fp16."""
    pytest.importorskip("auto_round", reason=WITHOUT_READER)
    target = AutoRound(spelled.partition("=")[2] or "auto-round")
    model = llama(attention_bias=True)
    mixed = in_turn(model, target, mix)

    check = ship(target, spelled, mixed, tmp_path / "out", model, examples())

    assert check.max_weight_difference == 0.0
    assert check.max_difference < 0.005 * check.spread
    bits = [
        CONTAINERS[x.precision.weight.number.bits]
        for x in mixed.layers
        if not x.precision.weight.is_exact
    ]
    assert check.kinds == {f"QuantLinear of {file}, {b} bits": bits.count(b) for b in set(bits)}
    assert check.predicted_bytes <= check.file_bytes <= check.predicted_bytes + HEADERS


def test_gptqmodel_computes_what_the_simulation_does(tmp_path: Path) -> None:
    """Its own layers of torch, in fp16, where every layer is quantized but one."""
    gptqmodel = pytest.importorskip("gptqmodel", reason="GPTQModel has an environment of its own")
    mix = (*SYMMETRIC[:6], "fp32")
    shipped = written(tmp_path, AutoRound("gptq"), mix)
    model = llama()
    words = {f"word{i}": i for i in range(model.config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    # GPTQModel loads no network without one.
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="word1").save_pretrained(tmp_path)

    backend, dtype = gptqmodel.BACKEND.TORCH, torch.float16
    loaded = gptqmodel.GPTQModel.load(str(tmp_path), device="cpu", backend=backend, dtype=dtype)

    assignment = in_turn(model, AutoRound("gptq"), mix)
    numbers = Assignment(assignment.layers, weight_range="minmax", numerics=AutoRound.numerics)
    simulation = mpq.quantize(model, numbers)
    bits = {
        name: layer.bits for name, layer in loaded.model.named_modules() if "bits" in vars(layer)
    }
    assert bits == {x.name: CONTAINERS[x.precision.weight.number.bits] for x in shipped.quantized}
    for batch in examples():
        expected = simulation(**batch).logits.detach()
        found = loaded.model(**batch).logits.detach().float()
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.01 * float(expected.std()))
