"""What determines numbers, down to their last bits, as checksums: names of what is kept."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from mpq.network.examples import Calibration
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

    Reads the examples once, and runs the first batch: weights alone do not say what is done with
    them.
    """
    with torch.no_grad():
        first = network.outputs(next(iter(network.batches(data))))
    method = RANGE_METHODS.build(quantizer.weight_range)
    return {
        **measurement_key(network, data, quantizer, candidates),
        "answers": checksum([first]),
        "code": code_of(("",), method, network.metric),
        "arithmetic": arithmetic(str(network.device)),
    }


def arithmetic(device: str) -> str:
    """What sums of products depend on beside their numbers, down to the last bit."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {capability}, {device}"


def code_of(folders: tuple[str, ...], *parts: object) -> str:
    """SHA-256 of our own code in some folders, and of the files of parts that are not ours."""
    found = hashlib.sha256(version("mpq").encode())
    found.update(_source(folders).encode())
    for part in parts:
        file = inspect.getsourcefile(type(part))
        if not type(part).__module__.startswith("mpq.") and file is not None:
            found.update(Path(file).read_bytes())
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
