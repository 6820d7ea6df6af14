"""A full disk is one sentence, whatever a target's writer makes of it, and nothing is left."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import mpq
from mpq.backends import shipping
from mpq.backends.torchao import TorchAo
from mpq.errors import ModelError, OutputError
from tests.backends import llamas
from tests.backends.c.networks import assigned
from tests.backends.onnx import networks

GRAPHS = ("onnx-qdq", "openvino")
PACKAGES: dict[str, tuple[str, ...]] = {
    "c": (),
    "onnx-qdq": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "mlx": ("mlx", "mlx_lm"),
}
SAYS_NOTHING = "the stream ended in a bad state"
TOLD = r"^cannot write the folder .*out: No space left on device$"


def exported(target: str, folder: Path) -> None:
    """A small network in a target, which takes more than 8 KiB."""
    for package in PACKAGES[target]:
        pytest.importorskip(package)
    built: Any = mpq.BACKENDS.build(target)
    model: nn.Module
    data: list[Any]
    if target == "c":
        model, data = nn.Sequential(nn.Linear(64, 64)).eval(), [torch.randn(8, 64)]
        found = assigned(model, data[0], ("w8a8",))
    elif target in GRAPHS:
        model = networks.made(networks.Images)
        found, data = networks.in_turn(model, built, ("w8",)), networks.examples(model)
    else:
        model, data = llamas.llama(), llamas.examples()
        found = llamas.in_turn(model, built, ("w8",))
    mpq.export(found, folder, target, model, data)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"no file system may be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("target", PACKAGES)
def test_a_disk_that_is_too_small_is_told(target: str, small_disk: Path) -> None:
    """By the error that every other command has for it."""
    with pytest.raises(OutputError, match=TOLD):
        exported(target, small_disk / "out")

    assert not list(small_disk.iterdir())


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    ("error", "free"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device"), 1 << 20),
        (ModelError("its runtime ended with 1: No space left on device (os error 28)"), 1 << 20),
        (OSError(errno.ENOSPC, "No space left on device"), 1 << 20),
        (RuntimeError(SAYS_NOTHING), 0),
        (ModelError("its runtime ended with -7"), 0),
    ],
    ids=repr,
)
def test_whatever_a_writer_raises_is_told(
    error: Exception, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its words, or by what is free when it has ended."""
    pytest.importorskip("torchao")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(TorchAo, "write", fails)
    monkeypatch.setattr(shipping, "_free_bytes", lambda _: free)

    with pytest.raises(OutputError, match=TOLD):
        exported("torchao", tmp_path / "out")

    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("same_process")
def test_another_error_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room is not blamed."""
    pytest.importorskip("torchao")

    def fails(*_: object) -> None:
        raise RuntimeError(SAYS_NOTHING)

    monkeypatch.setattr(TorchAo, "write", fails)

    with pytest.raises(RuntimeError, match=SAYS_NOTHING):
        exported("torchao", tmp_path / "out")

    assert not list(tmp_path.iterdir())
