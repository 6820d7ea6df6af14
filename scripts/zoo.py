"""Every model class of transformers through mpq: right, or a sentence.

    python -m scripts.zoo benchmarks/zoo.json                 # all; hours; goes on where it stopped
    python -m scripts.zoo zoo.json --sample 300 --minutes 9   # of as many families as possible
    python -m scripts.zoo zoo.json --again 'not built'        # these a second time
    python -m scripts.zoo whisper.json --only 'Whisper*' --jobs 2

Each class has a process and a time limit of its own. It is built tiny (``zoo_models.py``), searched
with two estimators, quantized, saved and loaded; ``look`` says what is checked. The file is
written anew after each class, and a later run goes on where it stops. A row's ``status``:

- ``right``: all went through, and everything that was checked holds;
- ``sentence``: mpq refused it with one of its own errors;
- ``wrong``: it went through, and something that was checked does not hold: ``wrong`` says what;
- ``traceback``: any other error;
- ``timeout``: or out of memory;
- ``needs a package``: that is not installed;
- ``not built``: could not be made tiny, or its inputs are not known: says nothing about mpq.
"""

import argparse
import json
import math
import multiprocessing as mp
import multiprocessing.connection
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
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
from scripts.zoo_models import Built, Entry, NotBuiltError, PackageMissingError, build, entries

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
MAIN_HEADS: Final = (
    "ForConditionalGeneration",
    "ForCausalLM",
    "LMHeadModel",
    "ForMaskedLM",
    "ForImageClassification",
    "ForCTC",
    "ForSemanticSegmentation",
    "Model",
    "ForSequenceClassification",
)
"""What a model type is tried with first."""
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
        if name == estimators[0]:  # the same for all of them
            row["wrong"] += _faults_unquantized(task, result, held_out)
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


def _faults_unquantized(task: mpq.Task, result: mpq.SearchResult, batch: Row) -> Iterator[str]:
    error = unquantized_error(task.model, result.assignment, batch)
    if error > TOLERANCE:
        yield f"with nothing quantized the outputs differ by {error:.2g} of the largest"


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
    began = time.process_time()
    try:
        built = build(entry)
        row["seconds_built"] = round(time.process_time() - began, 2)
        row["parameters"] = sum(p.numel() for p in built.model.parameters())
        row["inputs"] = {name: list(x.shape) for name, x in built.batches[0].items()}
        return {**row, **look(built)}
    except PackageMissingError as error:
        return {**row, "status": "needs a package", "sentence": str(error)}
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
        seconds: Time limit of each, of the processor, so that a busy machine fails no class.
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
        self._entry, self._began = entry, time.monotonic()
        # One that waits for ever uses no processor.
        self._end = self._began + 5 * seconds
        self._process = context.Process(target=_work, args=(entry, sender, seconds))
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
            self._process.join()
            is_late = self._process.exitcode == -signal.SIGXCPU
            row = lost if is_late else {**lost, "sentence": "out of memory"}
        self._process.kill()
        self._process.join()
        return {**row, "seconds": round(time.monotonic() - self._began, 1)}


def _work(entry: Entry, sender: Connection, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    used = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (used, used + 5))
    warnings.simplefilter("ignore")
    began, row = time.process_time(), row_of(entry)
    sender.send({**row, "seconds_processor": round(time.process_time() - began, 2)})


def by_family(found: Sequence[Entry], seed: int = 0) -> list[Entry]:
    """The main class of every model type, in a drawn order, then a second of each, and so on."""
    drawn = random.Random(seed).sample(list(found), len(found))
    rounds, met = list[tuple[int, Entry]](), Counter[str]()
    for entry in sorted(drawn, key=_minor):
        rounds.append((met[entry.model_type], entry))
        met[entry.model_type] += 1
    place = {entry: index for index, entry in enumerate(drawn)}
    return [entry for _, entry in sorted(rounds, key=lambda pair: (pair[0], place[pair[1]]))]


def _minor(entry: Entry) -> int:
    """0 for a head that a model is known by, larger for others."""
    return next((i for i, head in enumerate(MAIN_HEADS) if entry.name.endswith(head)), 99)


def main(show: Callable[[str], Any] = sys.stderr.write) -> None:
    """Takes the classes that are asked for through mpq, and writes their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON; what it has already is not run again")
    parser.add_argument("--only", default="*", help="a glob on the names of classes")
    parser.add_argument("--sample", type=int, help="so many, of as many families as possible")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each class")
    parser.add_argument("--minutes", type=float, default=1e9, help="when to begin no further one")
    parser.add_argument("--again", nargs="*", default=[], help="statuses to run once more")
    asked = parser.parse_args()
    known = entries()
    rows = _rows_so_far(asked.out, {entry.name for entry in known})
    chosen = by_family([x for x in known if fnmatchcase(x.name, asked.only)])[: asked.sample]
    left = [x for x in chosen if x.name not in rows or rows[x.name]["status"] in asked.again]
    _prepare()
    until = time.monotonic() + 60 * asked.minutes
    for count, row in enumerate(sweep(left, asked.jobs, asked.seconds, until), start=1):
        rows[row["model"]] = row
        _write(asked.out, rows, known)
        show(f"{count}/{len(left)} {row['model']}: {row['status']} {row['seconds']} s ")
        show(f"{row.get('sentence', '') or row.get('wrong') or ''}\n")


def _prepare() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # Whatever this imports need not be imported in every process.
    look(build(Entry("BertModel", "bert")), ["auto"])


def _about() -> Row:
    versions = {name: version(name) for name in ("mpq", "torch", "transformers")}
    return {"command": "python -m scripts.zoo benchmarks/zoo.json", "limit": LIMIT} | {
        "versions": versions
    }


def _rows_so_far(path: Path, known: Collection[str]) -> dict[str, Row]:
    """The rows of an earlier run, by model.

    Raises:
        SystemExit: If it was run otherwise: its rows would not go with these.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if any(found[key] != value for key, value in _about().items()):
        raise SystemExit(f"{path} is of other versions or of another limit; begin a new file")
    return {row["model"]: row for row in found["rows"] if row["model"] in known}


def _write(path: Path, rows: dict[str, Row], known: Sequence[Entry]) -> None:
    """All rows by name, and what was not tried."""
    tried = {row["type"] for row in rows.values()}
    types = {entry.model_type for entry in known}
    about = _about() | {
        "classes": len(known),
        "model_types": len(types),
        "model_types_tried": len(tried),
        "not_tried": sorted(entry.name for entry in known if entry.name not in rows),
    }
    text = json.dumps({**about, "rows": [rows[name] for name in sorted(rows)]}, indent=1)
    # Whole or not at all, should this be stopped.
    beside = path.with_suffix(".part")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    main()
