"""What the command line names: callables, networks, weights, data."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from mpq.backends.hugging_face import load_module, require
from mpq.errors import FileFormatError, InputError, ModelError
from mpq.network.refusals import foreign_program
from mpq.network.synthetic import DATA_SOURCES


def load_callable(spec: str) -> Callable[..., Any]:
    """The function that ``package.module:name`` or ``path/to/file.py:name`` names.

    Raises:
        InputError: If the module or the name does not exist, or it cannot be called.
    """
    found = load_object(spec)
    if not callable(found):
        raise InputError(f"{spec} is a {type(found).__name__}; expected a function")
    return cast(Callable[..., Any], found)


def load_object(spec: str) -> Any:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` names.

    Raises:
        InputError: If the module or the name does not exist.
    """
    # From the right: a path on Windows has a colon after its drive.
    module_name, separator, name = spec.rpartition(":")
    if not separator or not module_name or not name:
        raise InputError(f"{spec!r}: write package.module:name or path/to/file.py:name")
    module = _load_file(module_name) if module_name.endswith(".py") else _import(module_name)
    if not hasattr(module, name):
        raise InputError(f"{module_name} has no {name!r}")
    return getattr(module, name)


def _import(name: str) -> Any:
    # As ``python -m`` does; for an installed command the first entry is the folder of its script.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    # Any other error is one in the user's module, and passes on for --debug to show.
    except ModuleNotFoundError as error:
        raise InputError(
            f"cannot import {name!r}: {error} (looked in {Path.cwd()} and the installed packages)"
        ) from error


def _load_file(path: str) -> Any:
    file = Path(path).resolve()
    if not file.is_file():
        raise InputError(f"there is no file {path}")
    # With a prefix, so that a file called torch.py takes no other module's place.
    name = f"mpq_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:  # the file may import its neighbours
        sys.path.insert(0, str(file.parent))
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickling look their module up there
    try:
        spec.loader.exec_module(module)
    # Whatever it is, also Ctrl+C: nobody may find a module of which only the beginning ran.
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def refuse_missing_data(model: str, examples: str) -> NoReturn:
    """Says that a network of the user's own needs data; first, if it is the network that is wrong.

    Args:
        model: What ``--model`` names.
        examples: Which examples are missing: ``calibration`` or ``held-out``.

    Raises:
        InputError: Always.
    """
    if not Path(model).is_dir():
        load_object(model)
    raise InputError(f"--model needs --data: a function that yields {examples} batches")


def load_data(spec: str, model: nn.Module, seed: int = 0) -> Any:
    """Examples: from the function that a spec names, or from a source that needs no data.

    Args:
        spec: ``package.module:name``, ``path/to/file.py:name``, or a name of
            ``mpq.network.synthetic.DATA_SOURCES`` with options.
        model: What a source makes its examples for.
        seed: Seed of a source that draws.

    Raises:
        InputError: If the spec names nothing.
    """
    # Before modules: a source takes options after the colon, where a module has its function.
    if spec.partition(":")[0] in DATA_SOURCES.names():
        return DATA_SOURCES.build(spec, seed).calibration(model)
    return load_callable(spec)


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """The network that a spec names, with weights from a file.

    Args:
        spec: Names a function that takes nothing and returns a network, or a network; or a folder
            of Hugging Face.
        weights: A ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads.

    Raises:
        InputError: If the spec names nothing.
        ModelError: If it is no network.
        FileFormatError: If the weights do not fit it.
    """
    if Path(spec).is_dir():
        return load_folder(Path(spec), weights)
    model = load_object(spec)
    why = foreign_program(model)
    if why:
        raise ModelError(f"{spec}: {why}")
    # A module can be called too, but not without an input: only what is none makes one.
    if not isinstance(model, nn.Module):
        model = load_callable(spec)()
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} gave a {type(model).__name__}, not an nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model


def load_folder(folder: Path, weights: Path | None = None) -> nn.Module:
    """The network of a Hugging Face folder, as the class that its ``config.json`` names.

    In the dtype of its weights, which are mapped: they are read as they are needed.

    Args:
        folder: With ``config.json`` and weights in safetensors, in one file or several.
        weights: Has to be ``None``, as the folder has them.

    Raises:
        InputError: If weights are given as well.
        FileFormatError: If it is no such folder.
        MissingDependencyError: If transformers is not installed.
        ModelError: If a tensor is missing, has no place, or another shape.
    """
    if weights is not None:
        raise InputError(f"{folder} has its own weights: leave out --weights")
    require("transformers", "compressed-tensors")
    if not list(folder.glob("*.safetensors")) or not _is_known(folder / "config.json"):
        raise FileFormatError(
            f"{folder} is no folder of a network: it needs a config.json of Hugging Face that "
            "names one of transformers' classes (architectures), and weights in safetensors"
        )
    return load_module(folder, {"dtype": "auto"})


def _is_known(config: Path) -> bool:
    """Whether a configuration names a class that transformers has."""
    import transformers

    if not config.is_file():
        return False
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False
    names: Any = told.get("architectures") if isinstance(told, dict) else None
    is_named = isinstance(names, list) and bool(names) and isinstance(names[0], str)
    return is_named and hasattr(transformers, names[0])


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict; every name must fit, but tied parameters need be there only once.

    Raises:
        FileFormatError: If the file cannot be read, or names or shapes do not fit.
    """
    state = _read_state(path)
    # A state dict has an entry per name, a safetensors file one per tensor.
    for owner in tied_names(model):
        present = next((name for name in owner if name in state), None)
        if present is not None:
            state |= dict.fromkeys(owner, state[present])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FileFormatError(f"{path} does not fit the network: {error}") from error


def tied_names(model: nn.Module) -> list[list[str]]:
    """Groups of two and more parameter names that are one parameter."""
    names: dict[int, list[str]] = {}
    # By default torch lists a shared parameter under its first name only.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileFormatError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise FileFormatError(f"{path} is not a safetensors file: {error}") from error
    return _unpickle(path)


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        # A pickle may run any code, and a checkpoint may be from a machine with a GPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes make it stumble over
        reason = next(iter(str(error).splitlines()), "no text")
        raise FileFormatError(
            f"{path} cannot be read as tensors only ({type(error).__name__}: {reason}); "
            "save model.state_dict(), best as safetensors"
        ) from error
    # Training checkpoints have optimizer and epoch beside the weights.
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    is_state = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not is_state:
        raise FileFormatError(f"{path} holds a {type(state).__name__}, not a state dict of tensors")
    return dict(state)
