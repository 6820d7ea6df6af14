"""The long commands of mpq on a tiny network: what ``scripts.soak`` kills, and what they keep."""

import csv
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from scripts.soak_language_model import TOKENIZER

NET: Final = ("--model", "scripts.soak_commands:make_net")
DATA: Final = (*NET, "--data", "scripts.soak_commands:examples")
TASK: Final = (
    *DATA, "--eval-data", "scripts.soak_commands:held_out", "--precisions", "w2a8,w4a8,w8a8",
)  # fmt: skip
LANGUAGE: Final = (
    "--model", "scripts.soak_language_model:make_model",
    "--data", "scripts.soak_language_model:examples",
)  # fmt: skip
DRAWN: Final = (*TASK, "--points", "4")
SOLVED: Final = (*DRAWN, "--sensitivity", "weight-error", "--solver")
TRIALS: Final = "num_trials=30,batch_size=4,is_measured=true"
LIMITS: Final = {"new": ("--limit", "effective_bits=6.5"), "old": ("--limit", "effective_bits=7.5")}
CLOCKED: Final = re.compile(r"second|forward_passes|peak_memory|peak_bytes|_s$|drift")
"""Keys and columns that are another number in every run."""
SEARCHED: Final = (
    "search", *SOLVED, "lagrangian", *LIMITS["new"], "--output", "out",
    "--rounding", "coordinate-descent:signs=false",  # which every target reads
)  # fmt: skip
SEARCHED_LANGUAGE: Final = (
    "search", *LANGUAGE, "--precisions", "w4g32,w8g32", "--exclude", "*embed*", "--sensitivity",
    "weight-error", "--solver", "lagrangian", "--limit", "effective_bits=6.5", "--output", "out",
)  # fmt: skip
MARK: Final = re.compile(rb"mpq-run-[0-9a-f]{16}")
"""Of a run: a checksum of all its numbers, times among them."""


def make_net() -> nn.Module:
    """Five layers of a few weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (8, 12, 12, 12):
        layers += [nn.Linear(width, 12), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(12, 4)).eval()


def examples() -> list[tuple[Tensor, Tensor]]:
    """Four batches, so that journals have four rows for every layer."""
    return _drawn(1)


def held_out() -> list[tuple[Tensor, Tensor]]:
    """Others."""
    return _drawn(2)


def _drawn(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(6, 8, generator=generator) for _ in range(4)]
    return [(batch, batch[:, :4].argmax(dim=1)) for batch in batches]


@dataclass(frozen=True)
class Command:
    """One that takes long on a network of a user.

    Args:
        name: For people.
        args: What follows ``mpq``; it writes into the current folder.
        kept: File of the rows that outlive a kill; empty: there is none.
        has_limits: Whether it takes ``--limit``, so that there is an older result of another one.
        needs: Files of a search that it reads.
        is_shared: Whether rows depend on who else writes them, as trials of a search do.
        searched: The search that ``needs`` are files of.
        made: Folder that is there once all is done, and that the command then refuses to replace.
    """

    name: str
    args: tuple[str, ...]
    kept: str = ""
    has_limits: bool = True
    needs: tuple[str, ...] = ()
    is_shared: bool = False
    searched: tuple[str, ...] = SEARCHED
    made: str = ""

    def line(self, which: str = "new") -> list[str]:
        """All arguments; ``old``: of a run that came before, with other limits."""
        return [*self.args, *(LIMITS[which] if self.has_limits else ())]


def _measuring(name: str, options: str) -> Command:
    args = ("search", *DRAWN, "--output", "out", "--sensitivity", f"{options}journal=kept")
    return Command(f"search, {name}", args, "kept")


def _studied(solver: str, storage: str = "kept") -> Command:
    args = ("search", *SOLVED, f"{solver}:storage={storage},{TRIALS}", "--output", "out")
    kept = storage.removeprefix("sqlite:///")
    return Command(f"search, {solver} in {storage}", args, kept, is_shared=True)


def _shipped(target: str, network: tuple[str, ...], searched: tuple[str, ...]) -> Command:
    args = ("export", "assignment.json", "--to", target, *network, "--output", "made")
    name = f"export --to {target.partition(':')[0]}"
    return Command(
        name,
        args,
        has_limits=False,
        needs=("assignment.json", "assignment.safetensors"),
        searched=searched,
        made="made",
    )


TARGETS: Final = (
    *(_shipped(target, DATA, SEARCHED) for target in ("onnx-qdq", "openvino", "c")),
    *(
        _shipped(target, LANGUAGE, SEARCHED_LANGUAGE)
        for target in ("compressed-tensors", "torchao", "mlx", f"gguf:tokenizer=../{TOKENIZER}")
    ),
)

COMMANDS: Final = (
    _measuring("measured", "measured:"),
    _measuring("measured with interactions", "measured:interactions=true,"),
    _measuring("pairwise", "pairwise:"),
    _studied("evolutionary"),
    _studied("surrogate"),
    _studied("bayesian"),
    _studied("evolutionary", "sqlite:///kept.db"),
    Command("search --refine", ("search", *DRAWN, "--refine", "2", "--output", "out")),
    Command("search --alternatives", ("search", *DRAWN, "--alternatives", "3", "--output", "out")),
    Command("frontier", ("frontier", *DRAWN, "--measure", "--output", "out")),
    Command(
        "compare",
        ("compare", *TASK, "--random", "8", "--output", "out", "--estimator", "weight-error",
         "--estimator", "sketch", "--estimator", "fisher"),
        "out/measured.jsonl",
    ),
    Command(
        "profile",
        ("profile", *DATA, "--precisions", "w4a8,w8a8", "--num-networks", "2", "--rounds", "10",
         "--max-interval", "1000000", "--output", "profile.json"),
        "profile.json.journal",
        has_limits=False,
    ),
    Command(
        "evaluate",
        ("evaluate", "assignment.json", *NET, "--data", "scripts.soak_commands:held_out"),
        has_limits=False,
        needs=("assignment.json", "assignment.safetensors"),
    ),
    Command(
        "quantize",
        ("quantize", "assignment.json", *NET, "--output", "rounded.safetensors"),
        has_limits=False,
        needs=("assignment.json", "assignment.safetensors"),
    ),
    Command(
        "export",
        ("export", "assignment.json", "--to", "onnx", *DATA, "--output", "net.onnx"),
        has_limits=False,
        needs=("assignment.json", "assignment.safetensors"),
    ),
    Command(
        "solve",
        ("solve", "problem.json", "--solver", "evolutionary:storage=kept,num_trials=60"),
        "kept",
        has_limits=False,
        needs=("problem.json",),
        is_shared=True,
    ),
    *TARGETS,
)  # fmt: skip


def rows(file: Path) -> list[str]:
    """What a journal, a study or a database keeps, one text a row, the oldest first."""
    if not file.exists():
        return []
    if file.suffix == ".db":
        return list(_trials(file))
    # Whole lines only: what a kill has cut off was never promised.
    return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def measured(kept: list[str]) -> list[str]:
    """Names of what was measured: one that is there twice was measured twice."""
    found = []
    for row in kept:
        parsed = json.loads(row)
        attributes = parsed.get("user_attrs") or {}
        found += [parsed["name"]] if "name" in parsed else []
        found += [attributes["mpq:choice"]] if "mpq:choice" in attributes else []
    return found


def _trials(file: Path) -> Iterator[str]:
    """Finished trials, in the form that a study's journal has."""
    asked = (
        "select a.value_json, v.value from trial_user_attributes a join trial_values v "
        "on a.trial_id = v.trial_id where a.key = 'mpq:choice' order by a.trial_id"
    )
    with sqlite3.connect(file) as database:
        try:
            found = database.execute(asked).fetchall()
        except sqlite3.OperationalError:  # killed before there were tables
            return
    for choice, value in found:
        yield json.dumps({"user_attrs": {"mpq:choice": json.loads(choice)}, "value": value})


def comparable(file: Path) -> Any:
    """What two runs of one command agree on in a file."""
    content = MARK.sub(b"mpq-run", file.read_bytes())
    if file.suffix == ".json":
        found = without_clock(json.loads(content))
        # A profile is times, and what is computed from them; so is what a run took.
        return _form(found) if file.name in ("profile.json", "made.json") else found
    if file.suffix == ".csv":
        head, *lines = csv.reader(content.decode().splitlines())
        keep = [i for i, name in enumerate(head) if not CLOCKED.search(name)]
        return [[line[i] for i in keep] for line in (head, *lines)]
    # Tables for people, with times in them: their form.
    return len(content.splitlines()) if file.suffix in (".md", ".html") else content


def without_clock(value: Any) -> Any:
    """JSON without what a clock has measured."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if not CLOCKED.search(k)}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


def _form(value: Any) -> Any:
    """JSON with every number that is no whole one left out."""
    if isinstance(value, dict):
        return {k: _form(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_form(one) for one in value]
    return None if isinstance(value, float) else value
