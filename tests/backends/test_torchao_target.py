"""The target ``torchao``: folders that transformers loads and computes as the simulation does."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mpq.backends.export_check import ExportCheck
from mpq.backends.shipping import ship
from mpq.backends.torchao import TorchAo
from mpq.errors import ModelError, PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import Precision
from tests.backends.llamas import examples, in_turn, llama

pytest.importorskip("torchao")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers", minversion="5")


def shipped(folder: Path, model: nn.Module, mix: tuple[str, ...]) -> ExportCheck:
    """The precisions in turn, exported, and run by transformers."""
    found = in_turn(model, TorchAo(), mix)
    return ship(TorchAo(), "torchao", found, folder, model, examples())


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    "mix",
    [
        ("w2", "w3", "w4", "w5", "w6", "w7", "w8", "w4t"),
        ("w4z", "w2zg32", "w8z", "w3g32", "w8zg16"),
        ("w4g32a8d", "w8a8d", "w4za8d", "fp32"),
    ],
    ids=lambda mix: mix[0],
)
def test_a_folder_of_torchao_computes_what_the_simulation_does(
    mix: tuple[str, ...], tmp_path: Path
) -> None:
    """To the last bit of the weights, also of the last layer, which transformers leaves out."""
    check = shipped(tmp_path / "out", llama(), mix)

    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread
    assert all(
        re.fullmatch(r"Linear IntxUnpackedToInt8Tensor of int\d", kind) for kind in check.kinds
    )
    assert sum(check.kinds.values()) == check.num_layers
    assert check.file_bytes == check.predicted_bytes + TorchAo().header_bytes(tmp_path / "out")


@pytest.mark.usefixtures("same_process")
def test_a_code_takes_a_byte(tmp_path: Path) -> None:
    """Whatever its bits: the folder says how large it is."""
    few = shipped(tmp_path / "few", llama(), ("w2",))
    many = shipped(tmp_path / "many", llama(), ("w8",))

    assert few.predicted_bytes == many.predicted_bytes
    tensors = load_file(tmp_path / "few" / "model.safetensors")
    assert tensors["lm_head._weight_qdata"].dtype is torch.int8
    assert tensors["lm_head._weight_qdata"].shape == (128, 64)
    assert (
        -2 == tensors["lm_head._weight_qdata"].min() < tensors["lm_head._weight_qdata"].max() == 1
    )


@pytest.mark.parametrize(
    ("kind", "shape", "precision", "why"),
    [
        ("linear", (8, 64), "w8a8", "rounds inputs to a8d or not at all"),
        ("linear", (8, 64), "w8a8sd", "rounds inputs to a8d or not at all"),
        ("linear", (8, 64), "wfp8", "integers of 2 to 8 bits, and no fp8_e4m3"),
        ("linear", (8, 48), "w4g32", "48 inputs are no whole groups of 32"),
        ("embedding", (8, 64), "w4", "a layer of the kind embedding"),
    ],
)
def test_what_torchao_cannot_hold_is_refused(
    kind: str, shape: tuple[int, ...], precision: str, why: str
) -> None:
    """With the layer's name and the reason."""
    layer = AssignedLayer("fc", kind, shape, Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'fc' at .*{why}"):
        TorchAo().check([layer])


def test_a_last_layer_that_shares_the_embedding_is_refused(tmp_path: Path) -> None:
    """transformers shares no quantized weights; nothing is left behind."""
    model, w4 = llama(tie_word_embeddings=True), Precision.parse("w4")
    found = in_turn(model, TorchAo(), ("w4",))
    layers = (replace(x, precision=w4) if x.name == "lm_head" else x for x in found.layers)

    with pytest.raises(ModelError, match="'lm_head' shares its weight"):
        ship(
            TorchAo(),
            "torchao",
            replace(found, layers=tuple(layers)),
            tmp_path / "out",
            model,
            examples(),
        )

    assert not list(tmp_path.iterdir())
