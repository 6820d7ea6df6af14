"""Every model class of transformers through mpq: right, or a sentence.

    python -m scripts.zoo benchmarks/zoo.json                 # all; goes on where it stopped
    python -m scripts.zoo zoo.json --sample 300 --minutes 9   # of as many families as possible
    python -m scripts.zoo zoo.json --again 'not built'        # these a second time
    python -m scripts.zoo whisper.json --only 'Whisper*' --jobs 2

Each class has a process and a time limit of its own. It is built tiny (``zoo_models.py``), searched
with two estimators, quantized, saved and loaded; ``zoo_checks.look`` says what is checked. The file
is written anew after each class, and a later run goes on where it stops. A row's ``status``:

- ``right``: all went through, and everything that was checked holds;
- ``sentence``: mpq refused it with one of its own errors;
- ``wrong``: it went through, and something that was checked does not hold: ``wrong`` says what;
- ``traceback``: any other error;
- ``timeout``: of the processor, or five times as long by the clock; or out of memory;
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
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from scripts.zoo_checks import LIMIT, Row, look
from scripts.zoo_models import Entry, NotBuiltError, PackageMissingError, build, entries

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
        if isinstance(error, ImportError) and "mpq/" not in where[-1].filename:
            return {**row, "status": "needs a package", "sentence": str(error).strip()[:400]}
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
    until = time.monotonic() + 60 * asked.minutes
    _prepare()
    known = entries()
    rows = rows_so_far(asked.out, {entry.name for entry in known})
    chosen = by_family([x for x in known if fnmatchcase(x.name, asked.only)])[: asked.sample]
    left = [x for x in chosen if x.name not in rows or rows[x.name]["status"] in asked.again]
    for count, row in enumerate(sweep(left, asked.jobs, asked.seconds, until), start=1):
        rows[row["model"]] = row
        write(asked.out, rows, known)
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


def rows_so_far(path: Path, known: Collection[str]) -> dict[str, Row]:
    """The rows of an earlier run, by model.

    Raises:
        SystemExit: If it was run otherwise: its rows would not go with these.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if any(found.get(key) != value for key, value in _about().items()):
        raise SystemExit(f"{path} is of other versions or of another limit; begin a new file")
    return {row["model"]: row for row in found["rows"] if row["model"] in known}


def write(path: Path, rows: dict[str, Row], known: Sequence[Entry]) -> None:
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
