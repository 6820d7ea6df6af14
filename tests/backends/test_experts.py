"""A Mixtral of transformers 5, whose experts are two parameters, in a search for a target."""

from pathlib import Path

import pytest
from rich.console import Console

import mpq
from mpq.backends.vllm import fused
from mpq.cli.console import print_result
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL
from tests.backends.llamas import examples, mixtral
from tests.backends.searches import refused

pytestmark = pytest.mark.usefixtures("same_process")


@pytest.mark.parametrize("to", ["onnx-qdq", "openvino"])
def test_experts_that_are_looped_over_are_refused(to: str) -> None:
    """A Mixtral of transformers, whose loop depends on the numbers."""
    pytest.importorskip("onnxscript")
    why = refused(mixtral(), examples(), to, "weight_bytes=0.9x:w8")

    assert "'model.layers.0.mlp.experts' depends on the numbers" in why


@pytest.mark.parametrize("to", ["compressed-tensors", "torchao"])
def test_fused_experts_stay_and_are_named_first(
    to: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """transformers keeps all experts of a block in one parameter, which is no linear layer."""
    pytest.importorskip(to.replace("-", "_"))
    model, data = mixtral(), examples()
    task = mpq.Task(model, data, to=to, candidates=["w4g32", "w8"])

    result = mpq.search(task, ["weight_bytes=1MiB"], sensitivity="weight-error")
    mpq.export(result.assignment, tmp_path / "out", to, model, data)
    print_result(result, Console(width=200))

    experts = {x.name for x in result.assignment.layers if ".experts" in x.name}
    quantized = {x.name for x in result.assignment.layers if x.precision != ORIGINAL}
    assert experts
    assert experts <= set(result.provenance.unshipped)
    assert {f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"} <= quantized
    first = capsys.readouterr().out.lstrip().partition("\n")[0]
    unshipped = result.provenance.unshipped
    count = f"{len(unshipped)} of {len(result.assignment.layers)} layers stay as they came"
    assert first.startswith(f"{count}, as {to} holds none of their candidates: ")
    assert "it has no module of its own" in unshipped[min(experts)]


def test_experts_that_are_one_parameter_are_no_group() -> None:
    """What readers fuse beside them are q, k and v."""
    names = [layer.name for layer in Network.of(mixtral(), examples()).layers]

    groups = fused(names)

    assert sum(".experts" in name for name in names) > 3
    assert groups == (tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkv"),)
