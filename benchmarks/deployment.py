"""Trained networks through every target: searched for it, exported, run by its own runtime.

    python benchmarks/deployment.py > benchmarks/deployment.json
    python benchmarks/deployment.py smollm2 mlx --into benchmarks/deployment_smollm2.json

The Llama of the TinyStories (examples/llama_stories_transformers.py), SmolLM2-135M-Instruct
(benchmarks/smollm2.py, from Q4_1), EfficientNet-Lite0 (benchmarks/efficientnet_lite0.py), ResNet-20
(examples/resnet20_cifar10.py) and the network of the demo, each within 0.8 times the weight bytes
of the target's own w8 (torchao, which stores a byte per code: 1.05 times). Prints JSON, a row for
every network and target: the figures of ``export.json`` (difference from the simulation, KL
divergence from the original in the runtime and in the simulation, bytes in the file and predicted,
examples and tokens a second on this machine), and of the target's uniform precisions their bytes,
what they lose in the simulation, and the same figures of their own export (of SmolLM2, two of
them). Where a network or a precision is refused, its row has the sentence. A row's
``load_average`` is that of the last minute: this process is 1 of it, and what is above is other
work, beside which the speeds were measured.

Needs the networks: MPQ_DATA or ../shared/data, MPQ_MODELS or ../shared/models, and the extras of
the targets. Names of networks, targets or both choose some: ``stories gguf``; ``--into`` puts the
rows into a file, in the place of older ones, each as soon as it is there. LiteRT's reader needs an
environment of its own, so that ``litert`` is run only where it is named, by the Python that
``python -m scripts.targets --only litert --keep environments`` leaves: install pillow beside it,
and ``environments/litert/bin/python benchmarks/deployment.py demo litert --into ...``. Portable C
has a benchmark of its own, portable_c.py.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

import mpq
from mpq._support.files import write_files
from mpq.callbacks import Progress
from mpq.cli.loading import load_callable, load_model
from mpq.errors import MpqError
from mpq.problem.metadata import Metadata
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.workflows.uniform import nearest

HERE: Final = Path(__file__).parent
EXAMPLES: Final = HERE.parent / "examples"
DATA: Final = Path(os.environ.get("MPQ_DATA") or HERE.parents[1] / "shared" / "data")
LIMITS: Final = {
    "compressed-tensors": "weight_bytes=0.8x:w8",
    "gguf": "weight_bytes=0.8x:w8",
    "mlx": "weight_bytes=0.8x:w8",
    "onnx-qdq": "weight_bytes=0.8x:w8",
    "openvino": "weight_bytes=0.8x:w8",
    # A byte for every code, whatever its bits: nothing is below w8.
    "torchao": "weight_bytes=1.05x:w8",
    "litert": "weight_bytes=0.8x:w8",
}
ONLY_NAMED: Final = ("litert",)
"""Run only where they are named: their readers live in no environment of the others."""
OF_GRAPHS: Final = ("onnx-qdq", "openvino", "litert")
"""Targets that take any network; the others read language models by transformers' names."""

COMPARED: Final = (
    "kl_from_original_nats",
    "max_difference",
    "file_bytes",
    "predicted_bytes",
    "examples_per_second",
    "tokens_per_second",
)


@dataclass(frozen=True)
class Subject:
    """A network and how it is searched.

    Args:
        place: A file or a module with make_net, calibration, held_out; for GGUF save_tokenizer.
        targets: Those that have a place for such a network.
        weight_range: Of 135 M weights, the least squares of forty ranges would be most of the time.
        weights: The file that they come in, where make_net draws them.
        sensitivity: Every probe rounds 135 M weights in every format, which takes a quarter minute.
        runs_all: Whether the runtime runs every uniform precision; else, as it takes minutes, the
            best within the bytes and the one of the most bytes.
    """

    place: Path | str
    targets: tuple[str, ...]
    weight_range: str = "mse"
    weights: Path | None = None
    sensitivity: str = "auto"
    runs_all: bool = True

    def part(self, name: str) -> Any:
        """One of its functions."""
        return load_callable(f"{self.place}:{name}")

    def model(self) -> torch.nn.Module:
        """The trained network."""
        return load_model(f"{self.place}:make_net", self.weights)


OF_LANGUAGE: Final = tuple(name for name in LIMITS if name != "litert")
SUBJECTS: Final = {
    "stories": Subject(EXAMPLES / "llama_stories_transformers.py", OF_LANGUAGE),
    "smollm2": Subject(
        HERE / "smollm2.py",
        OF_LANGUAGE,
        weight_range="minmax",
        sensitivity="sketch:num_probes=4",
        runs_all=False,
    ),
    "efficientnet_lite0": Subject(HERE / "efficientnet_lite0.py", OF_GRAPHS),
    "resnet20": Subject(
        EXAMPLES / "resnet20_cifar10.py", OF_GRAPHS, weights=DATA / "cifar10/resnet20.safetensors"
    ),
    "demo": Subject("mpq.demo", OF_GRAPHS),
}


def shipped(subject: Subject, target: str, limit: str, folder: Path) -> dict[str, Any]:
    """The figures of one network in one target."""
    held_out, model = subject.part("held_out"), subject.model()
    ranges = mpq.Ranges(weight=subject.weight_range)
    task = mpq.Task(
        model, subject.part("calibration"), held_out, to=target, ranges=ranges, rounding="nearest"
    )
    started = time.perf_counter()
    result = mpq.search(task, [limit], sensitivity=subject.sensitivity, callbacks=[Progress()])
    seconds = time.perf_counter() - started
    mpq.export(result.assignment, folder, target, model, task.calibration, held_out=held_out)
    exported: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    compared = {row.label: row for row in result.comparisons}
    uniform = {
        str(precision): {
            "weight_bytes": compared[str(precision)].costs["weight_bytes"],
            "held_out_kl_nats": compared[str(precision)].measured.divergence,
        }
        for precision in result.problem.loss.precisions
        if precision != ORIGINAL
    }
    (budget,) = result.assignment.metadata.budgets
    within = {k: v for k, v in uniform.items() if v["weight_bytes"] <= budget.limit}
    best = min(within, key=lambda label: within[label]["held_out_kl_nats"], default="")
    most = max(uniform, key=lambda label: uniform[label]["weight_bytes"])
    for label, told in uniform.items():
        if subject.runs_all or label in (best, most):
            assignment = uniformly(result, Precision.parse(label))
            place = folder.with_name(f"{folder.name}-{label}")
            told.update(in_runtime(assignment, place, target, task))
    return exported | {
        "precisions": sorted({str(p) for p in result.assignment.precisions.values()}),
        "held_out_kl_nats": compared["result"].measured.divergence,
        "best_uniform": best,
        "uniform": uniform,
        "sensitivity": subject.sensitivity,
        "search_seconds": seconds,
    }


def uniformly(result: mpq.SearchResult, precision: Precision) -> mpq.Assignment:
    """One precision in every layer that may take it, the nearest in the others."""
    taken = result.problem.precisions_of(nearest(result.problem, precision))
    layers = (replace(each, precision=taken[each.name]) for each in result.assignment.layers)
    metadata = Metadata(metric=result.assignment.metadata.metric)
    return replace(result.assignment, layers=tuple(layers), metadata=metadata)


def in_runtime(
    assignment: mpq.Assignment, folder: Path, target: str, task: mpq.Task
) -> dict[str, Any]:
    """Of ``export.json`` what is said of a uniform precision too."""
    try:
        mpq.export(assignment, folder, target, task.model, task.calibration, held_out=task.held_out)
    except MpqError as error:
        return {"refused": str(error)}
    told = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    return {key: told[key] for key in COMPARED}


def rows(subject: Subject, targets: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A target and its row, one after the other."""
    with tempfile.TemporaryDirectory() as place:
        for name in targets:
            spelled = name
            if name == "gguf":
                subject.part("save_tokenizer")(f"{place}/tokenizer")
                spelled = f"gguf:tokenizer={place}/tokenizer"
            try:
                told = shipped(subject, spelled, LIMITS[name], Path(place, name))
            except MpqError as error:
                told = {"refused": str(error)}
            yield name, told | {"target": name, "limit": LIMITS[name]} | circumstances()


def circumstances() -> dict[str, Any]:
    """Under which a row was measured."""
    return {
        "command": " ".join(["python benchmarks/deployment.py", *sys.argv[1:]]),
        "num_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def put(file: Path, name: str, target: str, row: dict[str, Any]) -> None:
    """A row into a file, which is read only now: another command may have put its own there."""
    text = file.read_text(encoding="utf-8") if file.exists() else "{}"
    found = json.loads(text)
    found.setdefault(name, {})[target] = row
    content = json.dumps(found, indent=1) + "\n"
    write_files(file.parent, {file.name: content.encode()})


def main() -> None:
    """All of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks, targets or both")
    parser.add_argument("--into", type=Path, help="a file of rows, which stay but for these")
    asked = parser.parse_args()
    unknown = sorted({*asked.names} - {*SUBJECTS} - {*LIMITS})
    if unknown:
        parser.error(f"no network or target: {unknown}; those are {[*SUBJECTS]} and {[*LIMITS]}")
    found: dict[str, dict[str, Any]] = {}
    everywhere = [name for name in LIMITS if name not in ONLY_NAMED]
    targets = [name for name in LIMITS if name in asked.names] or everywhere
    for name in [name for name in SUBJECTS if name in asked.names] or SUBJECTS:
        takes = SUBJECTS[name].targets
        for target, row in rows(SUBJECTS[name], [x for x in targets if x in takes]):
            found.setdefault(name, {})[target] = row
            if asked.into:
                put(asked.into, name, target, row)
            print(f"{name} {target}: {json.dumps(row)}", file=sys.stderr, flush=True)
    if not asked.into:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
