"""What the command line names: callables, networks, weights; and files that are none of these."""

import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpq._support.pages import can_stream
from mpq.cli.loading import load_callable, load_model, load_object, load_weights
from mpq.errors import FileFormatError, InputError, ModelError
from mpq.network.mapped import unmapped_bytes

NET = """
from dataclasses import dataclass
from torch import nn

SIZE = 3
network = nn.Linear(SIZE, 2)

@dataclass
class Config:
    size: int = SIZE

def make_net():
    return nn.Linear(Config().size, 2)

def make_dict():
    return {}
"""


class Tied(nn.Module):
    """An embedding and a head that are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(x))
        return logits


class Attack:
    """An object whose unpickling calls a function."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's file with a network in it."""
    path = tmp_path / "my_net.py"
    path.write_text(NET, encoding="utf-8")
    return path


def linear(fill: float = 0.0) -> nn.Linear:
    """A layer with all weights equal."""
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, fill)
    nn.init.constant_(layer.bias, fill)
    return layer


def test_a_callable_of_a_module() -> None:
    """``package.module:name`` is what an import would give."""
    found = load_callable("collections:OrderedDict")

    import collections

    assert found is collections.OrderedDict


def test_a_callable_of_a_file(file: Path) -> None:
    """``path/to/file.py:name`` runs the file and takes the name from it."""
    found = load_callable(f"{file}:make_net")

    assert found.__name__ == "make_net"
    assert isinstance(found(), nn.Linear)


def test_a_file_relative_to_the_working_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is meant from where the user is."""
    monkeypatch.chdir(file.parent)

    found = load_object("my_net.py:SIZE")

    assert found == 3


def test_a_module_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's package is found from where the user is, as ``python -m`` would find it."""
    (tmp_path / "mypkg_of_test").mkdir()
    (tmp_path / "mypkg_of_test" / "mymod.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])

    found = load_object("mypkg_of_test.mymod:SIZE")

    assert found == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torch", "'torch': write package.module:name or path/to/file.py:name"),
        (":name", "':name': write package.module:name"),
        ("torch:", "'torch:': write package.module:name"),
        ("", "'': write package.module:name"),
        ("torch.nn:Linaer", "torch.nn has no 'Linaer'"),
        ("no_such_module_at_all:make", "cannot import 'no_such_module_at_all': No module named"),
        ("torch.no_such_part:make", "cannot import 'torch.no_such_part'"),
        ("no/such/file.py:make", "there is no file no/such/file.py"),
    ],
)
def test_a_spec_that_names_nothing(spec: str, message: str) -> None:
    """The error says which part of the spec is wrong."""
    with pytest.raises(InputError, match=re.escape(message)):
        load_callable(spec)


def test_a_name_that_the_file_lacks(file: Path) -> None:
    """The error names the file and the name."""
    with pytest.raises(InputError, match=r"my_net\.py has no 'make_nett'"):
        load_callable(f"{file}:make_nett")


def test_a_file_that_fails_leaves_no_module(tmp_path: Path) -> None:
    """Nobody imports what ran to its middle; a file that was mended is read as usual."""
    file = tmp_path / "net_that_fails.py"
    file.write_text("SIZE = 3\nraise RuntimeError('no network')\n", encoding="utf-8")

    with pytest.raises(RuntimeError, match="no network"):
        load_object(f"{file}:SIZE")
    assert "mpq_user_net_that_fails" not in sys.modules
    file.write_text("SIZE = 30\n", encoding="utf-8")
    assert load_object(f"{file}:SIZE") == 30
    module = sys.modules["mpq_user_net_that_fails"]
    file.write_text("raise RuntimeError('no network at all')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no network at all"):
        load_object(f"{file}:SIZE")
    assert sys.modules["mpq_user_net_that_fails"] is module


@pytest.mark.parametrize("name", ["make_net", "network"])
def test_a_model_is_a_function_or_a_network(name: str, file: Path) -> None:
    """``--model`` may name what makes the network, or the network."""
    model = load_model(f"{file}:{name}")

    assert isinstance(model, nn.Linear)


def test_a_function_that_makes_no_network(file: Path) -> None:
    """The error says what came instead."""
    with pytest.raises(ModelError, match=r"make_dict gave a dict, not an nn\.Module"):
        load_model(f"{file}:make_dict")


def test_a_model_that_is_neither(file: Path) -> None:
    """A name that is no callable and no network is refused in the user's words."""
    with pytest.raises(InputError, match=r"my_net\.py:SIZE.*int"):
        load_model(f"{file}:SIZE")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_weights_of_either_kind(suffix: str, tmp_path: Path) -> None:
    """Both formats give the numbers that were saved."""
    path, model = tmp_path / f"net{suffix}", linear(0.0)
    state = linear(2.5).state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)

    load_weights(model, path)

    assert model.weight.flatten().tolist() == [2.5] * 6
    assert model.bias.tolist() == [2.5] * 2


def test_weights_inside_a_checkpoint(tmp_path: Path) -> None:
    """A training checkpoint keeps the weights under ``state_dict``; the rest is left."""
    path, model = tmp_path / "checkpoint.pt", linear(0.0)
    torch.save({"epoch": 3, "state_dict": linear(1.0).state_dict()}, path)

    load_weights(model, path)

    assert model.bias.tolist() == [1.0] * 2


def test_weights_through_load_model(file: Path, tmp_path: Path) -> None:
    """``load_model`` puts the weights into what the function made."""
    path = tmp_path / "net.safetensors"
    save_file(linear(4.0).state_dict(), path)

    model = load_model(f"{file}:make_net", path)

    assert isinstance(model, nn.Linear)
    assert model.bias.tolist() == [4.0] * 2


@pytest.mark.parametrize("stored", ["embed.weight", "head.weight"])
def test_tied_parameters_are_stored_once(stored: str, tmp_path: Path) -> None:
    """A safetensors file holds a shared tensor once, under either name; the tie stays."""
    path, model = tmp_path / "tied.safetensors", Tied()
    save_file({stored: torch.full((5, 4), 7.0)}, path)

    load_weights(model, path)

    assert model.head.weight is model.embed.weight
    assert model.embed.weight.flatten().tolist() == [7.0] * 20


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, 'Missing key(s) in state_dict: "bias"'),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)},
            'Unexpected key(s) in state_dict: "extra"',
        ),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "size mismatch for weight"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_of_another_network(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    """The error names the file and the entry that does not fit."""
    path = tmp_path / "other.safetensors"
    save_file(state, path)

    with pytest.raises(FileFormatError, match=re.escape(message)) as caught:
        load_weights(linear(), path)

    assert f"{path} does not fit the network" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04garbage", b"PK\x03\x04garbage"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_is_not_what_it_says(suffix: str, content: bytes, tmp_path: Path) -> None:
    """Bytes of something else are one clear error that names the file."""
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)

    with pytest.raises(FileFormatError, match=rf"net\{suffix} (is not a safetensors|cannot be)"):
        load_weights(linear(), path)


def test_a_truncated_file(tmp_path: Path) -> None:
    """A download that broke off is no safetensors file."""
    path = tmp_path / "net.safetensors"
    save_file(linear().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5])

    with pytest.raises(FileFormatError, match=r"net\.safetensors is not a safetensors file"):
        load_weights(linear(), path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_is_unpickled(is_zip: bool, tmp_path: Path) -> None:
    """A file with a function in it is refused, and the function has not run."""
    path, marker = tmp_path / "net.pt", tmp_path / "attacked"
    if is_zip:
        torch.save({"weight": Attack(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Attack(marker)}))

    with pytest.raises(FileFormatError, match=r"cannot be read as tensors only.*save model\.state"):
        load_weights(linear(), path)

    assert not marker.exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    """A pickled network needs its code run; the message says what to save instead."""
    path = tmp_path / "net.pt"
    torch.save(linear(), path)

    with pytest.raises(FileFormatError, match=r"save model\.state_dict\(\), best as safetensors"):
        load_weights(linear(), path)


@pytest.mark.parametrize(
    ("held", "kind"), [([1, 2], "list"), ({"epoch": 3}, "dict"), (torch.zeros(2), "Tensor")]
)
def test_a_torch_file_without_weights(held: Any, kind: str, tmp_path: Path) -> None:
    """A torch file that holds something else is refused by what it holds."""
    path = tmp_path / "net.pt"
    torch.save(held, path)

    with pytest.raises(FileFormatError, match=f"holds a {kind}, not a state dict of tensors"):
        load_weights(linear(), path)


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt", "."])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    """A path that leads to no file is named."""
    with pytest.raises(FileFormatError, match="there is no weights file"):
        load_weights(linear(), tmp_path / name)


def folder_of_llama(folder: Path) -> Path:
    """A folder of Hugging Face with a small network, its head tied to its embedding."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_folder_of_hugging_face(tmp_path: Path) -> None:
    """In the dtype of its files, where its weights stay; in evaluation mode."""
    folder = folder_of_llama(tmp_path / "llama")

    model = load_model(str(folder))

    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    if can_stream():
        assert unmapped_bytes(model.parameters()) == 0


@pytest.mark.parametrize(
    "config", [None, "{", "[]", "{}", '{"architectures": []}', '{"architectures": ["NoSuchNet"]}']
)
def test_a_folder_of_something_else(tmp_path: Path, config: str | None) -> None:
    """The message says what it needs."""
    folder = folder_of_llama(tmp_path / "llama")
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config, encoding="utf-8")

    with pytest.raises(FileFormatError, match="names one of transformers' classes"):
        load_model(str(folder))


def test_a_folder_has_its_own_weights(tmp_path: Path) -> None:
    """Others beside them would not be used."""
    with pytest.raises(InputError, match="has its own weights: leave out --weights"):
        load_model(str(tmp_path), tmp_path / "other.safetensors")
