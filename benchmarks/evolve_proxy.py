"""Whether an evolved proxy ranks assignments of networks that it did not see.

    OMP_NUM_THREADS=1 python benchmarks/evolve_proxy.py > benchmarks/evolve_proxy.json

Evolves ``zero-cost:formula=`` on measured assignments of ResNet-20 and the small Llama, once for
every seed, and takes the formula that ranks these two best; ``evolved`` has how well, and
``known`` the same of the handcrafted formulas that evolution began at. Then ranks random
assignments of the vision transformer and of the built-in network, which it did not see, beside our
estimators, the untouched proxies and the handcrafted formulas. ``spearman`` is over all assignments
that lose at most 0.5 nats, ``at_one_limit`` the mean of the same near single limits; ``optima`` is
the geometric mean of what the optima at the limits lose on held-out examples, in units of the
sketch's.
Measurements are kept in the folder ``--keep``, from which a killed run goes on. Estimates are from
the first 128 calibration examples (64 sequences of the Llama).
"""

import argparse
import json
import sys
from math import exp, isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import mpq
from mpq import Calibration, demo
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.report.estimators import EstimatorComparison, Score
from mpq.report.loss_benchmark import LossBenchmark
from mpq.workflows.evolve_proxy import HANDCRAFTED, evolve_proxy

ROOT = Path(__file__).parents[1]
SEEN = {
    "resnet20": ("resnet20_cifar10", "cifar10/resnet20.safetensors"),
    "llama": ("llama_stories", "llm/stories260K.fp32.safetensors"),
}
UNSEEN = {"vit": ("vit_mnist", "mnist/vit_mnist.safetensors"), "demo": None}
CANDIDATES = ("w2", "w3", "w4", "w5", "w6", "w8")
LIMITS = tuple(f"weight_bytes=1x:w{bits}" for bits in (4, 5, 6))
CALIBRATION_EXAMPLES = 128
HELD_OUT_EXAMPLES = 256
HELD_OUT_SEQUENCES = 32
NUM_RANDOM = {"resnet20": 40, "llama": 40, "vit": 30, "demo": 30}  # a limit
SEEDS = (0, 1)
SKETCH = "sketch"
OURS = (SKETCH, "sketch:interactions=false", "fisher", "weight-error")
PROXIES = ("snip", "synflow", "fisher", "grasp", "grad-norm", "plain", "l2-norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True)
    keep = parser.parse_args().keep
    torch.set_num_threads(1)
    tasks = {name: task_of(*paths) for name, paths in SEEN.items()}
    pairs = [(task, benchmark(task, name, keep / name)) for name, task in tasks.items()]
    evolved = [evolve_proxy(pairs, seed=seed) for seed in SEEDS]
    sys.stderr.writelines(f"{proxy.estimator} {proxy.spearman}\n" for proxy in evolved)
    chosen = max(evolved, key=lambda proxy: fmean(proxy.spearman))
    unseen = {name: task_of(*(paths or (None, None))) for name, paths in UNSEEN.items()}
    formulas = (*(proxy.formula for proxy in evolved), *HANDCRAFTED)
    found = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "evolved_on": list(SEEN),
        "assignments": {name: len(b.counted) for name, (_, b) in zip(SEEN, pairs, strict=True)},
        "evolved": [json.loads(proxy.to_json()) for proxy in evolved],
        "chosen": chosen.estimator,
        "unseen": {name: ranked(t, name, keep / name, formulas) for name, t in unseen.items()},
    }
    print(json.dumps(found, indent=1))


def task_of(example: str | None, weights: str | None) -> mpq.Task:
    """One of the examples, or the built-in network."""
    if example is None or weights is None:
        model, data, unseen = demo.make_net(), demo.calibration, demo.held_out
    else:
        spec = ROOT / "examples" / f"{example}.py"
        model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
        data, unseen = (load_callable(f"{spec}:{x}") for x in ("calibration", "held_out"))
    stop = HELD_OUT_SEQUENCES if example == "llama_stories" else HELD_OUT_EXAMPLES
    held_out = Calibration(unseen, stop=stop)
    calibration = Calibration(data, stop=CALIBRATION_EXAMPLES)
    return mpq.Task(model, calibration, held_out, candidates=CANDIDATES, rounding="nearest")


def benchmark(task: mpq.Task, name: str, folder: Path) -> LossBenchmark:
    """Measured assignments."""
    file = folder / "bench.json"
    if not file.exists():
        mpq.compare(
            task, LIMITS, estimators=["weight-error"], num_random=NUM_RANDOM[name], folder=folder,
            save_bench=file,
        )  # fmt: skip
    return LossBenchmark.load(file)


def ranked(task: mpq.Task, name: str, folder: Path, formulas: tuple[str, ...]) -> dict[str, Any]:
    """How every estimator ranks the random assignments of a network, and what its optima lose."""
    asked = [*OURS, *(f"zero-cost:proxy={proxy}" for proxy in PROXIES)]
    asked += [f"zero-cost:formula={text}" for text in dict.fromkeys(formulas)]
    found = mpq.compare(task, LIMITS, estimators=asked, num_random=NUM_RANDOM[name], folder=folder)
    optima = {score.estimator: geometric(score) for score in found.scores}
    sketch = optima[SKETCH]
    return {
        "assignments": sum(trial.divergence <= found.max_loss for trial in found.trials),
        "estimators": {
            score.estimator: {
                "spearman": round(found.agreement(score).spearman, 4),
                "at_one_limit": at_one_limit(found, score),
                "optima": round(optima[score.estimator] / sketch, 4),
                "error": score.error,
            }
            for score in found.scores
        },
    }


def geometric(score: Score) -> float:
    """Mean of what the optima lose."""
    if not score.solved:
        return float("nan")
    return exp(fmean(log(one.divergence) for one in score.solved))


def at_one_limit(found: EstimatorComparison, score: Score) -> float | None:
    """Mean rank correlation near single limits; ``None`` where too few assignments count."""
    single = [found.agreement(score, limit) for limit in found.limits]
    known = [x.spearman for x in single if x.num_trials >= 10 and isfinite(x.spearman)]
    return round(fmean(known), 4) if known else None


if __name__ == "__main__":
    main()
