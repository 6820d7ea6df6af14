"""Every model class of transformers through mpq: right, or a sentence.

    python -m scripts.zoo > benchmarks/zoo.json               # all; hours
    python -m scripts.zoo --sample 300 --minutes 20           # of as many families as possible
    python -m scripts.zoo --only 'Whisper*' --jobs 2

Each class has a process and a time limit of its own. It is built tiny (``zoo_models.py``), searched
with two estimators, quantized, saved and loaded; ``look`` says what is checked. The rows are JSON
on standard output, progress goes to standard error. A row's ``status``:

- ``right``: all went through, and everything that was checked holds;
- ``sentence``: mpq refused it with one of its own errors;
- ``wrong``: it went through, and something that was checked does not hold: ``wrong`` says what;
- ``traceback``: any other error;
- ``timeout``: or out of memory;
- ``not built``: could not be made tiny, or its inputs are not known: says nothing about mpq.
"""

import argparse
import json
import multiprocessing as mp
import multiprocessing.connection
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mpq
from mpq.errors import MpqError
from mpq.report.save import save_result
from scripts.zoo_models import Built, Entry, NotBuiltError, build, entries

ESTIMATORS: Final = ("auto", "weight-error")
CANDIDATES: Final = ("w4", "w8")
LIMIT: Final = "effective_bits=0.85x:w8"
"""Between the candidates. Relative, as the scales of rows this short take bits, too."""
SOLVER: Final = "lagrangian"
"""Not the default, which takes seconds to prove what is best with interactions: it is the networks
that are tried here."""
TOLERANCE: Final = 1e-5
"""Of the largest output: how far a network with nothing quantized may be from the original."""
MEMORY_BYTES: Final = 6 << 30
Row = dict[str, Any]


def look(built: Built, estimators: Sequence[str] = ESTIMATORS) -> Row:
    """Takes a model through mpq, and checks what holds whatever the model.

    All parameters and buffers are counted, in layers or outside. The model is left as found, also
    where it is refused. With nothing quantized the outputs are the original's. The quantized
    network loses what the search measured. What is loaded is what was saved.

    Returns:
        The row of the table, with everything that does not hold in ``wrong``.
    """
    before = state_of(built.model)
    row: Row = {"status": "right", "wrong": [], "estimators": {}}
    try:
        _search(row, built, estimators)
    except MpqError as error:
        row |= {"status": "sentence", "sentence": str(error)}
    row["wrong"] += [f"not left as found: {x}" for x in changed(before, state_of(built.model))]
    return {**row, "status": "wrong"} if row["wrong"] else row


def _search(row: Row, built: Built, estimators: Sequence[str]) -> None:
    """Fills in the row, estimator by estimator."""
    first, second, held_out = built.batches
    metric = "kl" if _has_logits(built.model, first) else "squared-error"
    task = mpq.Task(built.model, [first, second], [held_out], candidates=CANDIDATES, metric=metric)
    row["metric"] = metric
    for name in estimators:
        began = time.perf_counter()
        result = mpq.search(task, [LIMIT], sensitivity=name, solver=SOLVER)
        row["wrong"] += [f"{name}: {why}" for why in _faults(task, result, held_out)]
        seconds = round(time.perf_counter() - began, 2)
        row["estimators"][name] = {"seconds": seconds, **_spot_check(result)}
        row |= _shares(result)


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that mpq must leave as it is: numbers, modes, hooks, gradients, random state."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    return {
        "values": {n: (t.detach().clone(), id(t), t.requires_grad) for n, t in tensors.items()},
        "gradients": {n: t.grad for n, t in tensors.items()},
        "modes": {n: m.training for n, m in modules.items()},
        "classes": {n: type(m) for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()
        },
        "random state": torch.get_rng_state(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what differs between two states."""
    return [name for name, value in before.items() if not _is_same(value, after[name])]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        same_type = isinstance(other, Tensor) and one.dtype == other.dtype
        # As bytes, since a nan differs from itself.
        return same_type and torch.equal(_bytes(one), _bytes(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _faults(task: mpq.Task, result: mpq.SearchResult, batch: dict[str, Any]) -> Iterator[str]:
    """What does not hold of a result."""
    model, coverage = task.model, result.coverage
    tensors = {id(t): t.numel() for t in (*model.parameters(), *model.buffers())}
    assert coverage is not None
    counted = coverage.covered_elements + sum(x.num_elements for x in coverage.outside)
    if not counted == coverage.num_elements == sum(tensors.values()):
        yield f"{counted} numbers counted of {sum(tensors.values())}"
    error = unquantized_error(model, result.assignment, batch)
    if error > TOLERANCE:
        yield f"with nothing quantized the outputs differ by {error:.2g} of the largest"
    found, said = _loss(task, result, batch), result.measured.divergence
    if abs(found - said) > 1e-3 * abs(said) + 1e-9:
        yield f"the quantized network loses {found:.6g}, the search measured {said:.6g}"
    with tempfile.TemporaryDirectory() as folder:
        # Without the sections, whose pictures would take most of a sweep's time.
        save_result(result, folder, result.frontier(num_points=2), sections=())
        again = mpq.load(folder)
    if again.assignment != result.assignment or not bool(
        (again.problem.loss.values == result.problem.loss.values).all()
    ):
        yield "what is loaded is not what was saved"


def unquantized_error(model: nn.Module, assignment: mpq.Assignment, batch: dict[str, Any]) -> float:
    """Largest difference of any output with all layers at fp32, as a share of the largest."""
    fp32 = mpq.Precision.parse("fp32")
    layers = tuple(replace(x, precision=fp32, activation_range=None) for x in assignment.layers)
    plain = mpq.quantize(model, replace(assignment, layers=layers))
    with torch.no_grad():
        pairs = zip(_floats(model(**batch)), _floats(plain(**batch)), strict=True)
        return max((_error(one, other) for one, other in pairs), default=0.0)


def _floats(output: Any) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def _error(one: Tensor, other: Tensor) -> float:
    # Masked scores are infinite at the same places.
    difference = (one.double() - other.double()).masked_fill(one == other, 0.0)
    finite = one[one.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return float(difference.nan_to_num(nan=0.0).abs().max()) / max(largest, 1e-30)


def _loss(task: mpq.Task, result: mpq.SearchResult, batch: dict[str, Any]) -> float:
    """Of the quantized network on a batch, beside mpq's own evaluation of it."""
    quantized, metric = mpq.quantize(task.model, result.assignment), task.output_metric
    with torch.no_grad():
        pair = (metric.positions(network(**batch)) for network in (task.model, quantized))
        return float(metric.divergence(*pair).mean())


def _has_logits(model: nn.Module, batch: dict[str, Any]) -> bool:
    with torch.no_grad():
        logits = getattr(model(**batch), "logits", None)
    axis = 1 if isinstance(logits, Tensor) and logits.ndim > 3 else -1
    return isinstance(logits, Tensor) and logits.ndim > 1 and logits.shape[axis] > 1


def _spot_check(result: mpq.SearchResult) -> Row:
    check = result.spot_check
    if check is None:
        return {}
    largest = max((x.measured for x in check.cells), default=0.0)
    # What is a millionth of the largest loss is rounding.
    told = [x for x in check.cells if x.measured > 1e-6 * largest]
    ratios = [x.predicted / x.measured for x in told]
    return {
        "predicted_over_measured": float(f"{median(ratios):.3g}") if ratios else None,
        "cells": len(check.cells),
        "cells_off": sum(x.is_off for x in check.cells),
        "no_gradient": len(check.no_gradient),
        "repaired": len(check.repaired),
        "fallback": check.fallback,
    }


def _shares(result: mpq.SearchResult) -> Row:
    coverage = result.coverage
    assert coverage is not None
    return {
        "layers": len(result.layers),
        "share_in_layers": round(coverage.covered_bytes / max(coverage.num_bytes, 1), 4),
        "share_of_weights_outside": round(
            coverage.weight_bytes_outside / max(coverage.num_bytes, 1), 4
        ),
        "weights_outside": [x.name for x in coverage.weights_outside[:4]],
    }


def row_of(entry: Entry) -> Row:
    """The row of one class, whatever happens to it."""
    row: Row = {"model": entry.name, "type": entry.model_type}
    try:
        built = build(entry)
        row["parameters"] = sum(p.numel() for p in built.model.parameters())
        row["inputs"] = {name: list(x.shape) for name, x in built.batches[0].items()}
        return {**row, **look(built)}
    except NotBuiltError as error:
        return {**row, "status": "not built", "sentence": str(error)}
    # What no error of mpq's own may be: it is what this script looks for.
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [
            f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in where if "mpq/" in f.filename
        ]
        text = f"{type(error).__name__}: {error}"[:400]
        return {**row, "status": "traceback", "sentence": text, "where": ours[-4:]}


def sweep(chosen: Sequence[Entry], jobs: int, seconds: float, until: float) -> Iterator[Row]:
    """The rows of classes, each in a process of its own.

    Args:
        chosen: The classes.
        jobs: Processes at once.
        seconds: Time limit of each.
        until: When no further one is begun, on the clock of ``time.monotonic``.
    """
    waiting, running = list(reversed(chosen)), list[_Run]()
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < until:
            running.append(_Run(waiting.pop(), seconds))
        if not running:
            return
        mp.connection.wait([run.receiver for run in running], timeout=1.0)
        for run in [run for run in running if run.is_over]:
            running.remove(run)
            yield run.row()


class _Run:
    """A class in a process of its own."""

    def __init__(self, entry: Entry, seconds: float) -> None:
        # Forked, so that torch and transformers are imported once.
        context = mp.get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)
        self._entry, self._end, self._began = entry, time.monotonic() + seconds, time.monotonic()
        self._process = context.Process(target=_work, args=(entry, sender))
        self._process.start()
        sender.close()

    @property
    def is_over(self) -> bool:
        """Whether there is a row, or time is up."""
        return self.receiver.poll() or time.monotonic() > self._end

    def row(self) -> Row:
        """Its row; ends the process."""
        lost = {"model": self._entry.name, "type": self._entry.model_type, "status": "timeout"}
        try:
            row: Row = self.receiver.recv() if self.receiver.poll() else lost
        except EOFError:  # the system has ended it
            row = {**lost, "sentence": "out of memory"}
        self._process.kill()
        self._process.join()
        return {**row, "seconds": round(time.monotonic() - self._began, 1)}


def _work(entry: Entry, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    sender.send(row_of(entry))


def by_family(found: Sequence[Entry], seed: int = 0) -> list[Entry]:
    """One class of every model type, then a second one of each, and so on."""
    drawn = random.Random(seed).sample(list(found), len(found))
    rounds, met = list[tuple[int, Entry]](), Counter[str]()
    for entry in drawn:
        rounds.append((met[entry.model_type], entry))
        met[entry.model_type] += 1
    return [entry for _, entry in sorted(rounds, key=lambda pair: pair[0])]


def _chosen(only: str, sample: int | None) -> list[Entry]:
    found = by_family([x for x in entries() if fnmatchcase(x.name, only)])
    return found[:sample]


def main(show: Callable[[str], Any] = sys.stderr.write) -> None:
    """Prints the rows of the classes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="a glob on the names of classes")
    parser.add_argument("--sample", type=int, help="so many, of as many families as possible")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each class")
    parser.add_argument("--minutes", type=float, default=1e9, help="when to begin no further one")
    asked = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # Whatever this imports need not be imported in every process.
    build(Entry("BertModel", "bert"))
    chosen, until = _chosen(asked.only, asked.sample), time.monotonic() + 60 * asked.minutes
    rows: list[Row] = []
    for row in sweep(chosen, asked.jobs, asked.seconds, until):
        rows.append(row)
        show(f"{len(rows)}/{len(chosen)} {row['model']}: {row['status']} {row['seconds']} s ")
        show(f"{row.get('sentence', '') or row.get('wrong') or ''}\n")
    rows.sort(key=lambda row: str(row["model"]))
    print(json.dumps({**_about(len(chosen)), "rows": rows}, indent=1))


def _about(num_chosen: int) -> Row:
    names = ("mpq", "torch", "transformers")
    return {
        "command": " ".join(["python -m scripts.zoo", *sys.argv[1:]]),
        "limit": LIMIT,
        "versions": {name: version(name) for name in names},
        "classes": len(entries()),
        "chosen": num_chosen,
    }


if __name__ == "__main__":
    main()
