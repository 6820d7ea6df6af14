"""Kills every long command at random moments, and runs it again: nothing lost, nothing in the way.

    python -m scripts.soak --minutes 10 > benchmarks/soak.json
    python -m scripts.soak --seed 0 --only 17       # one round again

A round takes one command of ``soak_commands.py``, kills it once to three times and runs the same
command to its end. Most are killed by SIGKILL, some by SIGTERM or SIGINT; half by the clock, half
just before a change of a file (an open for writing, a rename, a sync to the disk): the seed says
which one, so that these rounds can be repeated exactly. In some rounds the folder holds the result
of an earlier run with other limits; in some two processes run at once, one of which is killed. Then

- no row that was on disk before a kill is gone or measured again;
- after a kill every file is the old one or the new one, never a part;
- the last run says and writes what an uninterrupted one does, and nothing else is left beside it;
- it sleeps no longer than an uninterrupted one: nobody waits for a lock of the dead.

Processes are forked from one that has imported everything, and pictures are a few bytes: drawing
would take most of the time, and change no file meanwhile. Prints JSON; what failed, by round.
"""

import argparse
import importlib
import io
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from scripts.soak_commands import COMMANDS, LIMITS, SOLVED, Command
from scripts.soak_language_model import TOKENIZER, write_tokenizer
from scripts.soak_process import Ended, Moment, Run
from scripts.soak_round import Reference, Round, prepare

PRELOADED: Final = (
    "mpq.cli.__main__", "torch._dynamo", "optuna", "sqlalchemy", "pandas", "highspy", "pulp",
    "matplotlib.pyplot", "scipy.optimize", "onnx", "onnxscript", "onnxruntime", "rich.progress",
    "safetensors.torch", "transformers.models.llama", "mpq.workflows.search",
    "mpq.workflows.compare", "mpq.report.pictures",
)  # fmt: skip


@dataclass
class Soak:
    """All rounds, and what they found.

    Args:
        work: Folder for everything that is written.
        seed: Of all rounds.
        references: By the name of their commands, as they are needed.
        failures: What should not have been.
        counts: How much was tried.
        slept_s: The longest sleep of a last run beyond that of its reference; not of exports to
            targets, which sleep while a runtime works.
    """

    work: Path
    seed: int
    references: dict[str, Reference] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    slept_s: float = 0.0

    def round(self, number: int) -> None:
        """Kills one command, and runs it again."""
        command = COMMANDS[number % len(COMMANDS)]
        wanted = self.reference(command)
        one = Round(command, wanted, random.Random(f"{self.seed} {number}"), self.work / "round")
        one.play()
        self.counts += one.counts
        self.counts[command.name] += 1
        self.slept_s = max(self.slept_s, one.slept_s)
        print(f"round {number}: {command.name}: {', '.join(one.story)}", file=sys.stderr)
        for what in one.wrong:
            found = {"round": number, "command": command.name, "what": what, "story": one.story}
            self.failures.append(found)
            print(f"round {number}: WRONG: {what}", file=sys.stderr)
        shutil.rmtree(self.work / "round")

    def reference(self, command: Command) -> Reference:
        """The command alone, in a folder of its own; run where it was not yet."""
        if command.name not in self.references:
            old = self._undisturbed(command, "old")[0] if command.has_limits else None
            folder, ended = self._undisturbed(command, "new")
            self.references[command.name] = Reference(folder, ended, old)
        return self.references[command.name]

    def _undisturbed(self, command: Command, which: str) -> tuple[Path, Ended]:
        folder = self.work / f"{COMMANDS.index(command)} {which}"
        prepare(folder, command, self.work / "searched")
        ended = Run(folder, command.line(which), Moment()).end()
        if ended.code:
            sys.exit(f"{command.name} failed undisturbed:\n{ended.said}")
        return folder, ended

    def report(self, seconds: float) -> dict[str, Any]:
        """What is printed."""
        names = [command.name for command in COMMANDS]
        return {
            "command": " ".join(["python -m scripts.soak", *sys.argv[1:]]),
            "versions": {name: version(name) for name in ("optuna", "torch", "numpy")},
            "python": platform.python_version(),
            "seconds": round(seconds),
            "rounds": {name: self.counts[name] for name in names},
            "tried": {k: n for k, n in sorted(self.counts.items()) if k not in names},
            "longest_wait_s": round(self.slept_s, 2),
            "failures": self.failures,
        }


def _not_drawn(_: Any, file: Any, **options: Any) -> None:
    file.write(repr(options.get("metadata")).encode() * 1000)


def warm_up(folder: Path) -> None:
    """Imports everything, also what is imported where it is used first; no picture is drawn."""
    for name in PRELOADED:
        importlib.import_module(name)
    from matplotlib.figure import Figure

    from mpq.cli.app import app

    Figure.savefig = _not_drawn  # type: ignore[method-assign,assignment]
    # Neither gradients nor HiGHS, whose threads no forked process would have.
    args = ["search", *SOLVED, "lagrangian", "--output", str(folder / "warm"), *LIMITS["new"]]
    with redirect_stdout(io.StringIO()):
        app([*args, "--quiet", "--json"], standalone_mode=False)


def main() -> None:
    """Rounds until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", type=int, action="append", help="a round; may be given again")
    options = parser.parse_args()
    start, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="mpq-soak-") as folder:
        warm_up(Path(folder))
        write_tokenizer(Path(folder, TOKENIZER))
        soak = Soak(Path(folder).resolve(), options.seed)
        while options.only is None and time.monotonic() - start < 60 * options.minutes:
            soak.round(number)
            number += 1
        for number in options.only or ():
            soak.round(number)
        print(json.dumps(soak.report(time.monotonic() - start), indent=1))
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()
