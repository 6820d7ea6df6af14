"""Recipes that are text alone: what stands in them, what is refused, what their readers do."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import PrecisionError, UnknownNameError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

SHAPES = {"stem.0": (8, 3, 3, 3), "fc": (64, 512), "head": (16, 64)}


class Pictures(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.fc, self.head = nn.Linear(512, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.fc(self.stem(x).flatten(1)).relu()
        out: torch.Tensor = self.head(x)
        return out


def assigned(*spellings: str) -> Assignment:
    """One precision per layer."""
    return Assignment(
        tuple(
            AssignedLayer(
                name, "conv2d" if len(shape) == 4 else "linear", shape, Precision.parse(p)
            )
            for (name, shape), p in zip(SHAPES.items(), spellings, strict=True)
        )
    )


def written(folder: Path, recipe: str, *spellings: str) -> Path:
    """The file, by the command line."""
    (folder / "assignment.json").write_text(assigned(*spellings).to_json())
    asked = ["export", str(folder / "assignment.json"), "--to", recipe, "--output", f"{folder}/out"]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 0, answer.output
    (file,) = (folder / "out").iterdir()
    assert "not the codes" in file.read_text()
    return file


@pytest.mark.parametrize(
    ("recipe", "spellings", "why"),
    [
        ("modelopt", ("w8", "w5", "w4"), "layer 'fc' at w5a32: it has no int5 weights"),
        ("modelopt", ("w4g32", "w4", "w4"), "layer 'stem.0' at w4g32a32: its blocks are those"),
        ("modelopt", ("w8", "w8za32", "w4"), "layer 'fc' at w8za32: its scales are symmetric"),
        ("modelopt", ("w8", "w8a8d", "w4"), "layer 'fc' at w8a8d: its scales are symmetric"),
        ("coreml", ("w8", "w3", "w4"), "layer 'fc' at w3a32: it quantizes linearly to int4"),
        ("coreml", ("w8", "w8", "w4g128"), "layer 'head' at w4g128a32: 64 inputs are no whole"),
        ("coreml", ("w8", "w8a8d", "w4"), "layer 'fc' at w8a8d: the recipe is of weights alone"),
        ("executorch", ("fp32", "w4g32", "w8a8d"), "layer 'fc' at w4g32a32: XNNPACK computes"),
        ("executorch", ("fp32", "w3a8d", "w8a8d"), "layer 'fc' at w3a8d: XNNPACK runs w8a8d"),
        ("executorch", ("w8a8d", "w8a8d", "w8a8d"), "layer 'stem.0' at w8a8d: torchao's schemes"),
    ],
)
def test_what_a_tool_has_no_setting_for_is_refused(
    tmp_path: Path, recipe: str, spellings: tuple[str, ...], why: str
) -> None:
    """With the layer's name; nothing is written."""
    with pytest.raises(PrecisionError) as error:
        mpq.export(assigned(*spellings), tmp_path / "out", recipe)

    assert why in str(error.value)
    assert not list(tmp_path.iterdir())


def named(*names: str, folded: str = "") -> Assignment:
    """Linear layers of these names, weights in 4 and 8 bits in turn."""
    precisions = [Precision.parse(("w4", "w8")[i % 2]) for i in range(len(names))]
    layers = zip(names, precisions, strict=True)
    return Assignment(
        tuple(AssignedLayer(name, "linear", (16, 16), p) for name, p in layers),
        folded={names[0]: folded} if folded else {},
    )


def test_core_ml_refuses_two_layers_of_one_name(tmp_path: Path) -> None:
    """Its program calls both p_a_b_weight, and the later setting would be that of both."""
    with pytest.raises(PrecisionError, match="'a.b' and 'a_b' are both called 'p_a_b_weight'"):
        mpq.export(named("a.b", "a_b"), tmp_path / "out", "coreml")
    assert not (tmp_path / "out").exists()


def test_names_are_no_patterns_of_modelopt(tmp_path: Path) -> None:
    """ModelOpt reads quantizer_name as fnmatch does, so a module called ``a*`` is no wildcard."""
    yaml = pytest.importorskip("yaml")
    mpq.export(named("ab", "a*", "[b]", "x?"), tmp_path / "out", "modelopt")
    (file,) = (tmp_path / "out").iterdir()
    patterns = [x["quantizer_name"] for x in yaml.safe_load(file.read_text())["quant_cfg"][1:]]
    matched = [
        [n for n in ("ab", "a*", "[b]", "b", "x?") if fnmatchcase(f"{n}.weight_quantizer", p)]
        for p in patterns
    ]
    assert matched == [["ab"], ["a*"], ["[b]"], ["x?"]]


def test_control_characters_of_a_name_leave_yaml_readable(tmp_path: Path) -> None:
    """YAML refuses a file that has them, also in the comment that names folded modules."""
    yaml = pytest.importorskip("yaml")
    mpq.export(named("a", folded="n\x1b]0;x\x07"), tmp_path / "out", "modelopt")
    (file,) = (tmp_path / "out").iterdir()
    assert len(yaml.safe_load(file.read_text())["quant_cfg"]) == 2


def test_modelopt_reads_integer_keys(tmp_path: Path) -> None:
    """Everything is off, and then on by layer."""
    yaml = pytest.importorskip("yaml")

    found = yaml.safe_load(written(tmp_path, "modelopt", "w8a8sd", "w4g32a32", "fp8").read_text())

    first, *rest = found["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    assert {entry["quantizer_name"]: entry["cfg"] for entry in rest} == {
        "stem.0.weight_quantizer": {"num_bits": 8, "axis": 0},
        "stem.0.input_quantizer": {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}},
        "fc.weight_quantizer": {"num_bits": 4, "block_sizes": {-1: 32}},
        "head.weight_quantizer": {"num_bits": [4, 3], "axis": 0},
        "head.input_quantizer": {"num_bits": [4, 3], "axis": None},
    }


def test_core_ml_calls_weights_as_its_program_does(tmp_path: Path) -> None:
    """Otherwise for a traced network; small weights are not passed over."""
    yaml = pytest.importorskip("yaml")

    found = yaml.safe_load(written(tmp_path, "coreml", "w8", "w4g32", "w4tza32").read_text())

    assert found["config_type"] == "OpLinearQuantizerConfig"
    assert found["op_name_configs"] == {
        "p_stem_0_weight": {
            "mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel",
            "weight_threshold": 0,
        },
        "p_fc_weight": {
            "mode": "linear_symmetric", "dtype": "int4", "granularity": "per_block",
            "weight_threshold": 0, "block_size": 32,
        },
        "p_head_weight": {
            "mode": "linear", "dtype": "uint4", "granularity": "per_tensor", "weight_threshold": 0,
        },
    }  # fmt: skip
    traced = mpq.export(assigned("w8", "w8", "w8"), tmp_path / "b", "coreml:source=trace").path
    assert set(yaml.safe_load(traced.read_text())["op_name_configs"]) == {
        "stem_0_weight", "fc_weight", "head_weight",
    }  # fmt: skip
    with pytest.raises(UnknownNameError, match="jit"):
        mpq.BACKENDS.build("coreml:source=jit")


def test_torchao_reads_the_recipe_of_executorch(tmp_path: Path) -> None:
    """And quantizes the layers that are named, and no other."""
    torchao = pytest.importorskip("torchao.quantization")
    from torchao.core.config import config_from_dict

    file = written(tmp_path, "executorch", "fp32", "w4g32a8d", "w8a8d")

    model = Pictures().eval()
    config = config_from_dict(json.loads(file.read_text())["config"])
    torchao.quantize_(model, config, filter_fn=None)
    kinds: dict[str, Any] = {n: type(p.data).__name__ for n, p in model.named_parameters()}
    assert kinds["fc.weight"] == kinds["head.weight"] == "IntxUnpackedToInt8Tensor"
    assert kinds["stem.0.weight"] == "Tensor"
    weight: Any = model.fc.weight
    assert (tuple(weight.block_size), str(weight.target_dtype)) == ((1, 32), "torch.int4")


def test_model_opt_quantizes_by_its_recipe(tmp_path: Path) -> None:
    """Its own quantizers, with these bits and blocks."""
    mtq = pytest.importorskip("modelopt.torch.quantization", reason="pip install nvidia-modelopt")
    yaml = pytest.importorskip("yaml")
    file = written(tmp_path, "modelopt", "w8a8s", "w4g32a8sd", "fp8")
    data = torch.randn(4, 3, 8, 8)

    made = mtq.quantize(Pictures().eval(), yaml.safe_load(file.read_text()), lambda m: m(data))

    on = {
        name: part.num_bits
        for name, part in made.named_modules()
        if name.endswith("_quantizer") and part.is_enabled
    }
    assert on.pop("head.weight_quantizer") == on.pop("head.input_quantizer") == (4, 3)
    assert on == {
        "stem.0.weight_quantizer": 8, "stem.0.input_quantizer": 8, "fc.weight_quantizer": 4,
        "fc.input_quantizer": 8,
    }  # fmt: skip
    assert made.fc.weight_quantizer.block_sizes[-1] == 32
    assert made(data).isfinite().all()


@pytest.mark.parametrize("source", ["trace", "export"])
def test_core_ml_tools_quantize_by_their_recipe(tmp_path: Path, source: str) -> None:
    """Every weight that is named is found in the program, with its bits and blocks."""
    ct = pytest.importorskip("coremltools", reason="pip install coremltools")
    optimize = pytest.importorskip("coremltools.optimize.coreml")

    file = written(tmp_path, f"coreml:source={source}", "w8", "w4g32", "w4tza32")
    model, data = Pictures().eval(), torch.randn(1, 3, 8, 8)
    made: Any = torch.jit.trace(model, data)
    inputs: Any = {"inputs": [ct.TensorType(shape=data.shape)]}
    if source == "export":
        made, inputs = torch.export.export(model, (data,)).run_decompositions({}), {}
    program = ct.convert(
        made, minimum_deployment_target=ct.target.iOS18, convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32, **inputs,
    )  # fmt: skip

    small = optimize.linear_quantize_weights(
        program, optimize.OptimizationConfig.from_yaml(str(file))
    )

    found = {
        op.name.removeprefix("p_"): op.scale.val.shape
        for op in small._mil_program.functions["main"].operations
        if op.op_type.startswith("constexpr")
    }
    assert found == {
        "stem_0_weight_quantized": (8, 1, 1, 1),
        "fc_weight_quantized": (64, 16),
        "head_weight_quantized": (1, 1),
    }
