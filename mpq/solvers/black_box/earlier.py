"""What an earlier search has measured, for one that begins where that ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.study_file import check_there, study_file
from mpq.errors import InputError, MismatchError
from mpq.problem.problem import Problem
from mpq.solvers.black_box.study import COLUMNS, PROBLEM, is_address, others, quiet, reported

_FEWEST = 2
"""Trials that something can be learned from."""
_MEANING: Final = ("metric", "score")
"""What says what a loss means: of the same, other examples, rounding or weights teach something."""


@final
@dataclass(frozen=True, eq=False)
class Earlier:
    """Trials of an earlier search, at whatever limits.

    Args:
        layers: ``[K]`` names of that search's layers.
        precisions: ``[C]`` its precisions, as they are written.
        columns: ``[T, K]`` its assignments.
        losses: ``[T]`` what each was measured to lose; finite.
        depends: What the losses depend on, by name, as far as the study says so.
    """

    layers: tuple[str, ...]
    precisions: tuple[str, ...]
    columns: Columns
    losses: Array
    depends: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def taught(cls, storage: str, name: str, depends: Mapping[str, str] | None) -> Self:
        """The same as ``read``, for a search for the least of the same kind of loss.

        Args:
            storage: As the user wrote it.
            name: Of the study.
            depends: What the losses of the search that learns depend on; ``None``: predicted.

        Raises:
            InputError: See ``read``.
            FileFormatError: See ``read``.
            MismatchError: If losses were measured with another metric or score.
            MissingDependencyError: See ``read``.
        """
        found = cls.read(storage, name)
        here = depends or {}
        if wrong := [x for x in others(found.depends, here) if x in _MEANING]:
            raise MismatchError(
                f"the earlier search ({_told(found.depends)}) measured with another "
                f"{' and '.join(wrong)} than this one ({_told(here)}): losses of one are none of "
                "the other; give an earlier search by the same"
            )
        return found

    @classmethod
    def read(cls, storage: str, name: str) -> Self:
        """From the storage that the search had; nothing is written to it.

        Raises:
            InputError: If there is no such storage or no such study, or it has too few trials.
            FileFormatError: If it is no storage.
            MissingDependencyError: If a database's driver is not installed.
        """
        import optuna
        from optuna.storages import JournalStorage, RDBStorage

        if not (is_url := is_address(storage)):
            check_there(storage)
        with quiet(), reported(storage, InputError):
            kept: Any = RDBStorage(storage) if is_url else JournalStorage(study_file(storage))
            names = [one.study_name for one in optuna.get_all_study_summaries(kept)]
            if name not in names:
                raise InputError(
                    f"the storage has no study {name!r}; it has {', '.join(names) or 'none'}"
                )
            study = optuna.load_study(study_name=name, storage=kept)
            found = [t for t in study.get_trials(deepcopy=False) if t.values]
            problem = study.user_attrs[PROBLEM]
            if "layers" not in problem:
                raise InputError(f"the study {name!r} is of an older mpq, which named no layers")
            rows = [[int(x) for x in t.user_attrs[COLUMNS].split(",")] for t in found]
        losses = np.array([t.values[0] for t in found], dtype=np.float64)
        finite = np.isfinite(losses)
        if finite.sum() < _FEWEST:
            raise InputError(f"the study {name!r} has fewer than {_FEWEST} trials to learn from")
        columns = np.array(rows, dtype=np.intp)[finite]
        named = tuple(problem["layers"]), tuple(problem["precisions"])
        return cls(*named, columns, losses[finite], problem.get("depends", {}))

    def of_candidates(self, problem: Problem) -> tuple[Columns, Array]:
        """Assignments ``[T', K]`` by the problem's own columns, and their losses ``[T']``.

        Those with a precision that is no candidate any more are left out.

        Raises:
            MismatchError: If fewer than two are left.
        """
        places = {str(p): i for i, p in enumerate(problem.loss.precisions)}
        own = np.array([places.get(text, -1) for text in self.precisions], dtype=np.intp)
        columns = own[self.columns]
        known = (columns >= 0).all(axis=1)
        if known.sum() < _FEWEST:
            raise MismatchError(
                f"the earlier search had the candidates {', '.join(self.precisions)}, and fewer "
                f"than {_FEWEST} of its trials are of {', '.join(places)}: give the same candidates"
            )
        return columns[known], self.losses[known]

    def of_layers(self, problem: Problem) -> tuple[Columns, Array]:
        """The same of a problem with the same layers, where each may take its column.

        Raises:
            MismatchError: If it has other layers, or fewer than two assignments keep its ties and
                its fixed layers.
        """
        if self.layers != problem.loss.layers:
            raise MismatchError(
                f"the earlier search was of {len(self.layers)} layers, the first of them "
                f"{self.layers[0]!r}, and this one is of {len(problem.loss.layers)}, the first of "
                f"them {problem.loss.layers[0]!r}: give an earlier search of the same layers"
            )
        columns, losses = self.of_candidates(problem)
        allowed = np.array([problem.is_allowed(row) for row in columns])
        if allowed.sum() < _FEWEST:
            raise MismatchError(
                f"fewer than {_FEWEST} assignments of the earlier search keep what ties, fixed "
                "layers and candidates of single layers ask of this one: give it the same rules"
            )
        return columns[allowed], losses[allowed]


def _told(depends: Mapping[str, str]) -> str:
    """What losses are, in a word: a score comes before the metric that it is asked beside."""
    if not depends:
        return "losses that nothing is known of, or predicted ones"
    # The first word of a score's key is its name; what follows tells its code.
    score = depends.get("score", "").partition(" ")[0]
    return f"score {score}" if score else f"metric {depends.get('metric', 'unknown')}"


def best_within(
    problem: Problem, columns: Columns, losses: Array, count: int
) -> tuple[tuple[int, ...], ...]:
    """At most so many of the assignments ``[T, L]`` that keep the budgets, the best first."""
    ordered = (columns[i] for i in np.argsort(losses, kind="stable"))
    kept = [tuple(row.tolist()) for row in ordered if problem.is_feasible(row)]
    return tuple(kept[:count])
