"""made.json: how a run was called, and what it took. The same search again gives another one."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self, final

from mpq._support import schema_versions
from mpq._support.json_object import json_object, read_as, require_version
from mpq._support.phases import Spent
from mpq._support.schema import read_schema, validate

MADE_FILE: Final = "made.json"
"""Beside a run's other files."""
_PASSWORD: Final = re.compile(r"(?<=//)([^/@:\s]*):[^/@\s]*@")
"""Of a URL, as the storage of a solver is."""
_OF_ONE_RUN: Final = "--log"
"""Names a file that another run would add to."""


@final
@dataclass(frozen=True)
class Made:
    """How a run came about, as far as its other files do not say it.

    Args:
        command: Its words; none where it was called from Python.
        phases: What it spent its time on, in order.
        versions: Package to version; of a run of an older mpq none.
        sources: What its command loaded, as that names it: ``network``, ``weights``,
            ``calibration``, ``held_out``; none where it was called from Python.
    """

    command: tuple[str, ...] = ()
    phases: tuple[Spent, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def by(self, command: Sequence[str], sources: Mapping[str, str] = MappingProxyType({})) -> Self:
        """The same by a command that loaded these; without the passwords of URLs."""
        words = tuple(_PASSWORD.sub(r"\1:***@", word) for word in command)
        return replace(self, command=words, sources=dict(sources))

    def named(self, *names: str) -> list[str]:
        """What its command loaded as ``network``, ``calibration`` and so on, as far as is known."""
        return [self.sources[name] for name in names if name in self.sources]

    def compared(self, num_calibration: int, num_held_out: int) -> tuple[tuple[str, str], ...]:
        """Rows of a comparison's page: what was compared on which examples, then versions."""
        calibration = [f"{num_calibration:,}", *self.named("calibration")]
        held_out = [f"{num_held_out:,}", *self.named("held_out")]
        return (
            ("network", "; ".join(self.named("network", "weights"))),
            ("calibration examples", "; ".join(calibration)),
            ("held-out examples", "; ".join(held_out)),
            *self.versions.items(),
        )

    @property
    def again(self) -> tuple[str, ...]:
        """The command's words as a page gives them away: without what is of the one run alone."""
        return tuple(_without_log(self.command))

    def then(self, phases: Sequence[Spent]) -> Self:
        """With what came after; a phase that was done again counts as it was last."""
        spent = {phase.name: phase for phase in (*self.phases, *phases)}
        return replace(self, phases=tuple(spent.values()))

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """As it lies in a run's folder; nothing is known where there is none.

        Raises:
            FileFormatError: If the file cannot be read, or is no such file.
        """
        path = folder / MADE_FILE
        return read_as(path, cls.from_json) if path.exists() else cls()

    def to_json(self, run_id: str) -> str:
        """As ``made.schema.json`` describes it."""
        data = {
            "schema_version": schema_versions.MADE,
            "run_id": run_id,
            "command": list(self.command),
            "phases": [vars(phase) for phase in self.phases],
            **({"versions": dict(self.versions)} if self.versions else {}),
            **({"sources": dict(self.sources)} if self.sources else {}),
        }
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            FileFormatError: If the text is no such file.
        """
        data = json_object(text, "made")
        require_version(data, "made", schema_versions.MADE)
        validate(data, read_schema("mpq.report", "made.schema.json"), "made")
        phases = tuple(Spent(**phase) for phase in data["phases"])
        known = data.get("versions", {}), data.get("sources", {})
        return cls(tuple(data["command"]), phases, *known)


def _without_log(command: Sequence[str]) -> Iterator[str]:
    words = iter(command)
    for word in words:
        option, separator, _ = word.partition("=")
        if option != _OF_ONE_RUN:
            yield word
        elif not separator:
            next(words, "")
