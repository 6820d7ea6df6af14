"""Names of modules by an adversary: exported, or refused with the name."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore")
DATA = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0))]
PRECISIONS = {"c": "w8a8", "onnx-qdq": "w4", "openvino": "w4"}
NEEDED = {
    "c": (),
    "onnx-qdq": ("onnxscript", "onnxruntime"),
    "openvino": ("onnxscript", "openvino"),
}


class Named(nn.Module):
    """A layer for every name, one after the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            assert layer is not None
            x = torch.relu(layer(x))
        return x


def exported(names: tuple[str, ...], to: str, folder: Path) -> mpq.backends.ExportedFile:
    """All layers in one precision, for that target."""
    for package in NEEDED[to]:
        pytest.importorskip(package)
    if to == "c" and shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    model = Named(*names).eval()
    task = mpq.Task(model, DATA, DATA, candidates=[PRECISIONS[to]])
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment
    return mpq.export(found, folder / "out", to, model, DATA)


@pytest.mark.parametrize("to", PRECISIONS)
@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\", "class"])
def test_a_name_that_torch_cannot_write_is_named(to: str, name: str, tmp_path: Path) -> None:
    """With what to do, and nothing is written."""
    with pytest.raises(ModelError) as error:
        exported(("fine", name), to, tmp_path)

    assert repr(name) in str(error.value)
    assert "give it another name" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", PRECISIONS)
def test_all_other_names_are_exported(same_process: None, to: str, tmp_path: Path) -> None:
    """Ends of comments, escapes, control characters, trigraphs: none of them reaches a compiler."""
    names = ("*/ x", "//y", "it's", "a\\f", "\x07", "\t%s{}", "$(z)", "??/", "\u2028é")

    verdict = exported(names, to, tmp_path).verdict

    assert f"{len(names)} weights decoded" in verdict
