"""Networks in half precision: stored as they came, compared in float32."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mpq
from mpq.backends import target_of
from mpq.backends.half_precision import in_float32
from mpq.backends.shipping import ship
from mpq.errors import ModelError
from tests.backends.llamas import examples, in_turn, llama

transformers = pytest.importorskip("transformers", minversion="5")

HALF = [torch.bfloat16, torch.float16]
PACKAGES = {"compressed-tensors": "compressed_tensors", "torchao": "torchao", "mlx": "mlx_lm"}
MIXES = {
    "compressed-tensors": ("w4a32", "w8a8", "fp8", "w3g32a32", "w8a8d", "w5a32", "fp32"),
    "torchao": ("w4", "w3g32", "w8z", "w4g32a8d", "w8a8d", "fp32"),
    "mlx": ("w4g32", "w3", "w7g64", "w2zg32", "w8", "fp32"),
}


def halved(dtype: torch.dtype, **options: Any) -> Any:
    """As from_pretrained loads it: parameters in half precision, what is computed in float32."""
    model = llama(**options)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", MIXES)
def test_a_network_in_half_precision_is_the_simulation_in_the_runtime(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Scales lie in the network's dtype, as does all else, and codes are those of these scales."""
    pytest.importorskip(
        {"compressed-tensors": "compressed_tensors", "mlx": "mlx_lm"}.get(name, name)
    )
    model = halved(dtype)
    target = target_of(name).fitted(model)

    check = ship(
        target_of(name), name, in_turn(model, target, MIXES[name]), tmp_path / "out", model,
        examples(),
    )  # fmt: skip

    word = str(dtype).removeprefix("torch.")
    assert check.dtype == word
    assert f"stored in {word}, run in float32" in check.verdict
    assert check.max_weight_difference < 1e-7
    assert check.max_difference < 1e-5 * check.spread
    assert check.predicted_bytes <= check.file_bytes <= check.predicted_bytes + 65536
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == word
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.norm.weight"].dtype is dtype
    assert all(p.dtype is dtype for p in model.parameters())


@pytest.mark.parametrize("name", ["compressed-tensors", "torchao"])
def test_what_was_searched_in_half_precision_runs_in_half_precision(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """transformers in bfloat16, as config.json says, computes what the search measured."""
    if name != "torchao":  # one of them in a process of its own
        request.getfixturevalue("same_process")
    pytest.importorskip(PACKAGES[name])
    model = halved(torch.bfloat16)
    target = target_of(name).fitted(model)
    mixed = in_turn(model, target, ("w4", "w8", "w3g32"))
    assignment = replace(mixed, numerics=target.arithmetic)
    mpq.export(assignment, tmp_path / "out", name, model, examples())

    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()

    batch = examples()[0]
    assert loaded.dtype is torch.bfloat16
    with torch.no_grad():
        expected, found = mpq.quantize(model, assignment)(**batch).logits, loaded(**batch).logits
    assert torch.equal(expected, found)


@pytest.mark.parametrize("name", ["compressed-tensors", "torchao", "mlx"])
def test_numbers_that_a_cast_rounded_are_refused(name: str, tmp_path: Path) -> None:
    """``model.to(bfloat16)`` rounds the frequencies of positions, which readers compute anew."""
    model = llama().to(torch.bfloat16)
    task = mpq.Task(model, examples(), to=name)

    with pytest.raises(ModelError, match="inv_freq' was rounded to bfloat16 by a cast"):
        mpq.search(task, ["weight_bytes=100KiB"], sensitivity="weight-error")


def test_in_float32_shares_what_was_shared() -> None:
    """A parameter of two layers is one afterwards, and the user's stays in half precision."""
    first, second = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).half()
    second.weight = first.weight
    model = nn.Sequential(first, second).eval()

    found = in_float32(model)

    assert found[0].weight is found[1].weight  # type: ignore[index]
    assert found[1].bias.dtype is torch.float32  # type: ignore[index]
    assert torch.equal(found[0].weight, first.weight.float())  # type: ignore[index]
    assert first.weight.dtype is torch.bfloat16
    assert in_float32(found) is found
