"""made.json: how a run was called, and what it took. The same search again gives another one."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, final

from mpq._support import schema_versions
from mpq._support.json_object import json_object, require_version
from mpq._support.phases import Spent
from mpq._support.schema import read_schema, validate

_PASSWORD: Final = re.compile(r"(?<=//)([^/@:\s]*):[^/@\s]*@")
"""Of a URL, as the storage of a solver is."""


@final
@dataclass(frozen=True)
class Made:
    """How a run came about, as far as its other files do not say it.

    Args:
        command: Its words; none where it was called from Python.
        phases: What it spent its time on, in order.
    """

    command: tuple[str, ...] = ()
    phases: tuple[Spent, ...] = ()

    @classmethod
    def of(cls, command: Sequence[str], phases: Sequence[Spent]) -> Self:
        """Without the passwords of URLs."""
        return cls(tuple(_PASSWORD.sub(r"\1:***@", word) for word in command), tuple(phases))

    def to_json(self, run_id: str) -> str:
        """As ``made.schema.json`` describes it."""
        data = {
            "schema_version": schema_versions.MADE,
            "run_id": run_id,
            "command": list(self.command),
            "phases": [vars(phase) for phase in self.phases],
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
        return cls(tuple(data["command"]), tuple(Spent(**phase) for phase in data["phases"]))
