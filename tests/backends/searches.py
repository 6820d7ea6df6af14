"""A search for a target and the export of its result, for tests of what both promise."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from torch import nn

import mpq
from mpq.errors import InputError
from mpq.workflows.kept_estimates import kept_estimate


def refused(model: nn.Module, data: Any, to: str, limit: str) -> str:
    """Why a search for a target refuses a network; empty: its result was exported and passed."""
    estimates: list[str] = []

    def estimated(*given: Any) -> Any:
        estimates.append(to)
        return kept_estimate(*given)

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as place:
        patch.setattr("mpq.workflows.search.kept_estimate", estimated)
        why = ""
        try:
            result = mpq.search(mpq.Task(model, data, to=to), [limit], sensitivity="weight-error")
        except InputError as error:
            why = str(error)
        assert bool(estimates) == (not why), why
        if not why:
            mpq.export(result.assignment, Path(place, "out"), to, model, data)
    return why
