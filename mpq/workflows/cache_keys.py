"""What determines numbers, down to their last bits, as checksums: names of what is kept."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path

from mpq._support.told import code_told, is_known, told
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.network.network import Network
from mpq.quantization.fingerprint import checksum, measurement_key
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RANGE_METHODS


def key_of(parts: Mapping[str, str]) -> str:
    """SHA-256 of named parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def network_parts(
    network: Network, data: Calibration, quantizer: Quantizer, candidates: Sequence[Precision]
) -> dict[str, str]:
    """Parts of a key that any question about a network on examples has in common.

    Reads the examples twice, and runs the first batch: weights alone do not say what is done with
    them. Nor does that batch alone: what becomes of later ones, and what gradients pass, is said by
    the modules' code and settings.
    """

    def answers(some: Calibration) -> torch.Tensor:
        with torch.no_grad():
            return network.outputs(next(iter(network.batches(some))))

    # Of a batch that does not fit the first piece, which is enough to tell networks apart.
    first = halved("a look at the first batch", data, answers, network.why_uncut)
    method = RANGE_METHODS.build(quantizer.weight_range)
    return {
        **measurement_key(network, data, quantizer, candidates),
        "answers": checksum([first]),
        "modules": _modules(network.module),
        "settings": _settings(data),
        "code": code_of(("",), method, network.metric),
        "arithmetic": arithmetic(str(network.device)),
    }


def arithmetic(device: str) -> str:
    """What sums of products depend on beside their numbers, down to the last bit."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {capability}, {device}"


def code_of(folders: tuple[str, ...], *parts: object) -> str:
    """SHA-256 of our own code in some folders, and of parts: their state, and code not ours."""
    found = hashlib.sha256(version("mpq").encode())
    found.update(_source(folders).encode())
    for part in parts:
        found.update(told(part, checksum).encode())
    return found.hexdigest()


def _modules(module: nn.Module) -> str:
    """SHA-256 of what modules are made with beside parameters: code, switches, buffers."""
    # What is sparse has no plain bytes; the first answers depend on it.
    buffers = (x for x in module.buffers() if x.layout == torch.strided)
    found = hashlib.sha256(checksum(buffers).encode())
    # Once for all layers of a kind.
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        found.update(f"{kind.__module__} {kind.__qualname__}".encode())
        found.update(b"" if is_known(kind) else code_told(kind).encode())
    for name, part in module.named_modules():
        settings = ((k, x) for k, x in sorted(vars(part).items()) if _is_setting(x))
        found.update(f"{name} {type(part).__qualname__} {list(settings)}".encode())
    return found.hexdigest()


def _is_setting(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, bool | int | float | complex | str | torch.dtype)


def _settings(data: Calibration) -> str:
    """SHA-256 of what batches hold beside their tensors' numbers: names, switches, targets."""
    found = hashlib.sha256()
    for batch in data:
        leaves, _ = tree_flatten_with_path((batch.args, dict(batch.kwargs)))
        named = ((path, None if isinstance(x, torch.Tensor) else x) for path, x in leaves)
        found.update(told([(str(path), x) for path, x in named], checksum).encode())
        found.update(str(batch.targets is None).encode())
    return found.hexdigest()


@cache
def _source(folders: tuple[str, ...]) -> str:
    found = hashlib.sha256()
    for file in _files(folders):
        found.update(file.read_bytes())
    return found.hexdigest()


def _files(folders: tuple[str, ...]) -> Iterator[Path]:
    root = Path(__file__).parents[1]  # mpq
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))
