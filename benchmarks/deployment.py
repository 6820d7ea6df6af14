"""Trained networks through every target: searched for it, exported, run by its own runtime.

    python benchmarks/deployment.py > benchmarks/deployment.json

The Llama of the TinyStories (examples/llama_stories_transformers.py) and SmolLM2-135M-Instruct
(benchmarks/smollm2.py, from Q4_1), and EfficientNet-Lite0 (benchmarks/efficientnet_lite0.py), each
within 0.8 times the weight bytes of the target's own w8 (torchao, which stores a byte per code:
1.05 times). Prints JSON: for every network and target the
figures of ``export.json`` (difference from the simulation, KL divergence from the original in the
runtime and in the simulation, bytes in the file and predicted, examples and tokens a second on this
machine), and of the target's uniform precisions their bytes, what they lose in the simulation, and
the same figures of their own export, or the sentence that refuses it.
Needs the networks: MPQ_DATA or ../shared/data, MPQ_MODELS or ../shared/models, and the extras of
the targets. Names of networks, targets or both choose some: ``stories gguf``.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

import mpq
from mpq.cli.loading import load_callable
from mpq.errors import MpqError
from mpq.problem.assignment import Metadata
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.workflows.uniform import nearest

HERE: Final = Path(__file__).parent
LIMITS: Final = {
    "compressed-tensors": "weight_bytes=0.8x:w8",
    "gguf": "weight_bytes=0.8x:w8",
    "mlx": "weight_bytes=0.8x:w8",
    "onnx-qdq": "weight_bytes=0.8x:w8",
    "openvino": "weight_bytes=0.8x:w8",
    # A byte for every code, whatever its bits: nothing is below w8.
    "torchao": "weight_bytes=1.05x:w8",
}

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
        file: With make_net, calibration, held_out and save_tokenizer.
        weight_range: Of 135 M weights, the least squares of forty ranges would be most of the time.
        targets: Those that have a place for such a network.
    """

    file: Path
    weight_range: str
    targets: tuple[str, ...] = tuple(LIMITS)

    def part(self, name: str) -> Any:
        """One of the file's functions."""
        return load_callable(f"{self.file}:{name}")


SUBJECTS: Final = {
    "stories": Subject(HERE.parent / "examples" / "llama_stories_transformers.py", "mse"),
    "smollm2": Subject(HERE / "smollm2.py", "minmax"),
    "efficientnet_lite0": Subject(HERE / "efficientnet_lite0.py", "mse", ("onnx-qdq", "openvino")),
}


def shipped(subject: Subject, target: str, limit: str, folder: Path) -> dict[str, Any]:
    """The figures of one network in one target."""
    held_out, model = subject.part("held_out"), subject.part("make_net")()
    ranges = mpq.Ranges(weight=subject.weight_range)
    task = mpq.Task(model, subject.part("calibration"), held_out, to=target, ranges=ranges)
    started = time.perf_counter()
    result = mpq.search(task, [limit], progress=True)
    seconds = time.perf_counter() - started
    mpq.export(result.assignment, folder, target, model, held_out)
    exported: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    rows = {row.label: row for row in result.comparisons}
    uniform = {
        str(precision): {
            "weight_bytes": rows[str(precision)].costs["weight_bytes"],
            "held_out_kl_nats": rows[str(precision)].measured.divergence,
        }
        for precision in result.problem.loss.precisions
        if precision != ORIGINAL
    }
    for label, told in uniform.items():
        assignment = uniformly(result, Precision.parse(label))
        place = folder.with_name(f"{folder.name}-{label}")
        told.update(in_runtime(assignment, place, target, model, held_out))
    (budget,) = result.assignment.metadata.budgets
    within = {k: v for k, v in uniform.items() if v["weight_bytes"] <= budget.limit}
    best = min(within, key=lambda label: within[label]["held_out_kl_nats"], default="")
    return exported | {
        "precisions": sorted({str(p) for p in result.assignment.precisions.values()}),
        "held_out_kl_nats": rows["result"].measured.divergence,
        "best_uniform": best,
        "uniform": uniform,
        "search_seconds": seconds,
    }


def uniformly(result: mpq.SearchResult, precision: Precision) -> mpq.Assignment:
    """One precision in every layer that may take it, the nearest in the others."""
    taken = result.problem.precisions_of(nearest(result.problem, precision))
    layers = (replace(each, precision=taken[each.name]) for each in result.assignment.layers)
    metadata = Metadata(metric=result.assignment.metadata.metric)
    return replace(result.assignment, layers=tuple(layers), metadata=metadata)


def in_runtime(
    assignment: mpq.Assignment, folder: Path, target: str, model: torch.nn.Module, held_out: Any
) -> dict[str, Any]:
    """Of ``export.json`` what is said of a uniform precision too."""
    try:
        mpq.export(assignment, folder, target, model, held_out)
    except MpqError as error:
        return {"refused": str(error)}
    told = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    return {key: told[key] for key in COMPARED}


def main(chosen: list[str]) -> None:
    """All of them, or those that are named."""
    subjects = [name for name in SUBJECTS if name in chosen] or list(SUBJECTS)
    targets = [name for name in LIMITS if name in chosen] or list(LIMITS)
    found: dict[str, Any] = {
        "command": " ".join(["python benchmarks/deployment.py", *chosen]),
        "num_threads": torch.get_num_threads(),
    }
    for name in subjects:
        takes = SUBJECTS[name].targets
        found[name] = _in_all(SUBJECTS[name], [target for target in targets if target in takes])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found | {"peak_memory_kib": peak}, indent=1))


def _in_all(subject: Subject, targets: list[str]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in targets:
            spelled = name
            if name == "gguf":
                subject.part("save_tokenizer")(f"{place}/tokenizer")
                spelled = f"gguf:tokenizer={place}/tokenizer"
            told = shipped(subject, spelled, LIMITS[name], Path(place, name))
            found[name] = told | {"target": name, "limit": LIMITS[name]}
            print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
