"""Trials as arrays, and as an optuna study that several processes may share."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Self, final

import numpy as np

from mpq._support.arrays import Array
from mpq._support.study_file import study_file
from mpq.errors import (
    FileFormatError,
    InputError,
    MismatchError,
    MissingDependencyError,
    SolverError,
)
from mpq.problem.problem import Problem
from mpq.solvers.black_box.population import Assignments, Space

if TYPE_CHECKING:
    import optuna
    from optuna.storages import JournalStorage, RDBStorage

COLUMNS = "mpq:choice"
"""Attribute of a trial: its assignment, a column a layer."""
PROBLEM = "mpq:problem"
"""Attribute of a study: what tells its problem, and what layers and precisions that has."""
_SAME_LOSS = 1e-3
"""Relative difference of losses that two machines may have estimated from the same data."""
_ATTEMPTS, _PAUSE_S = 20, 0.1
"""To open a database whose tables other processes are making: about ten tables each."""
_DRIVERS = {
    "psycopg": "pip install 'psycopg[binary]'",
    "psycopg2": "pip install psycopg2-binary",
    "pymysql": "pip install 'pymysql[rsa]'",
    "MySQLdb": "pip install mysqlclient, or write mysql+pymysql:// and pip install 'pymysql[rsa]'",
}
"""Modules through which SQLAlchemy talks to databases, and where they come from."""


@final
@dataclass(frozen=True, eq=False)
class Trials:
    """What was evaluated.

    Args:
        assignments: ``[T, G]`` columns of the groups, the oldest trial first.
        values: ``[T, K]``: the loss, then, if they are objectives, what every budget counts.
        numbers: Every assignment, as bytes, to the number of the first trial that had it.
    """

    assignments: Assignments
    values: Array
    numbers: dict[bytes, int]

    def __len__(self) -> int:
        return len(self.assignments)

    def unknown(self, assignments: Assignments) -> Assignments:
        """Those of ``assignments [P, G]`` that none of these trials had, each once."""
        # Backwards, so that of equal rows the first is the one that stays in the dictionary.
        rows = {columns.tobytes(): row for row, columns in enumerate(assignments[::-1])}
        end = len(assignments) - 1
        new = [
            end - row for key, row in rows.items() if self.numbers.get(key, len(self)) >= len(self)
        ]
        return assignments[sorted(new)]


@final
class TrialLog:
    """Trials in the order in which they were written; grows.

    Args:
        num_groups: ``G``, the length of an assignment.
        num_values: ``K``, the number of values of a trial.
    """

    def __init__(self, num_groups: int, num_values: int) -> None:
        self._assignments = np.empty((64, num_groups), dtype=np.intp)
        self._values = np.empty((64, num_values))
        self._numbers: dict[bytes, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> Trials:
        """The oldest trials."""
        # Views, and one dictionary for all: what comes later has numbers from `count` on, which
        # `Trials.unknown` takes for not yet tried.
        return Trials(self._assignments[:count], self._values[:count], self._numbers)

    def all(self) -> Trials:
        """Every trial."""
        return self.first(self._count)

    def append(self, assignments: Assignments, values: Array) -> None:
        """Adds trials ``[P, G]`` with their values ``[P, K]``."""
        end = self._count + len(assignments)
        # Doubled, so that the copies cost a trial the same however many there are.
        while end > len(self._assignments):
            self._assignments = np.concatenate(
                [self._assignments, np.empty_like(self._assignments)]
            )
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._assignments[self._count : end] = assignments
        self._values[self._count : end] = values
        for number, columns in enumerate(self._assignments[self._count : end], start=self._count):
            self._numbers.setdefault(columns.tobytes(), number)
        self._count = end


@final
class Store:
    """Where trials are kept: in memory, or in an optuna study.

    A trial is written once it is finished, by one ``add_trial`` with the whole assignment as one
    attribute: with a parameter for each layer, storages take far longer.

    Args:
        space: Search space of the problem.
        storage: As the user wrote it.
        study: ``None``: in memory, without optuna.
        kept: What the study is in; ``None`` likewise.
    """

    def __init__(
        self,
        space: Space,
        storage: str,
        study: "optuna.Study | None",
        kept: "JournalStorage | RDBStorage | None",
    ) -> None:
        self._space = space
        self._storage = storage
        self._study = study
        self._kept = kept
        self._seen = 0

    @classmethod
    def open(
        cls,
        storage: str,
        name: str,
        space: Space,
        num_values: int,
        depends: Mapping[str, str] | None,
    ) -> Self:
        """Creates the study, or finds it again.

        Args:
            storage: A path or a database URL; empty: in memory.
            name: Name of the study in the storage.
            space: Search space of the problem.
            num_values: ``K`` objectives.
            depends: What the first depends on, by name, where it is measured; ``None``: it is
                predicted.

        Raises:
            InputError: If the storage cannot be opened, or is no journal.
            MismatchError: If the study is of another problem.
            MissingDependencyError: If the database's driver is not installed.
        """
        if not storage:
            return cls(space, storage, None, None)
        with quiet(), reported(storage, InputError):
            study, kept = _opened(storage, name, num_values)
            _check(study, name, space.problem, num_values, depends)
        return cls(space, storage, study, kept)

    def close(self) -> None:
        """Ends the connections to a database."""
        if self._kept is None:
            return
        from optuna.storages import RDBStorage

        if isinstance(self._kept, RDBStorage):
            self._kept.remove_session()
            self._kept.engine.dispose()

    def read(self, log: TrialLog) -> None:
        """Appends what this or another process has written since the last call.

        Raises:
            SolverError: If the storage cannot be read any more.
        """
        if self._study is None:
            return
        with reported(self._storage, SolverError):
            # Without copies: this runs after every batch and returns all trials.
            trials = self._study.get_trials(deepcopy=False)
            new = [t for t in trials[self._seen :] if t.values and COLUMNS in t.user_attrs]
            assignments = self._parsed([trial.user_attrs[COLUMNS] for trial in new])
        # Trials are added finished: one without values now never gets any.
        self._seen = len(trials)
        if new:
            log.append(assignments, np.array([trial.values for trial in new]))

    def _parsed(self, texts: list[str]) -> Assignments:
        """``[P, G]``; what somebody else wrote is not taken on trust."""
        layers = np.array([text.split(",") for text in texts], dtype=np.intp)
        layers = layers.reshape(len(texts), len(self._space.group_of))
        assignments = self._space.groups(layers)
        allowed = self._space.problem.grouped.allowed[
            np.arange(self._space.num_groups), assignments
        ]
        if not allowed.all() or (assignments < 0).any():
            raise ValueError("a trial has a precision that is not allowed")
        return assignments

    def write(self, log: TrialLog, assignments: Assignments, values: Array) -> None:
        """Keeps finished trials ``[P, G]`` with values ``[P, K]``, and appends them.

        Raises:
            SolverError: If the storage cannot be written any more.
        """
        if self._study is None:
            log.append(assignments, values)
            return
        from optuna.trial import create_trial

        layers = self._space.layers(assignments)
        with reported(self._storage, SolverError):
            for columns, row in zip(layers.tolist(), values.tolist(), strict=True):
                text = ",".join(map(str, columns))
                self._study.add_trial(create_trial(values=row, user_attrs={COLUMNS: text}))
        # Not appended but read back: the storage's order has other processes' trials in between.
        self.read(log)


def is_address(storage: str) -> bool:
    """Whether a storage is a database's URL, and no path.

    Raises:
        InputError: If it is neither.
    """
    scheme, colon, rest = storage.partition(":")
    is_url = bool(colon) and len(scheme) > 1  # one letter is a drive
    if is_url and (scheme.startswith("redis") or not rest.startswith("//")):
        raise InputError(
            f"storage {without_password(storage)!r}: expected a path such as search.log, or a "
            "database URL such as sqlite:///search.db"
        )
    return is_url


def _opened(
    storage: str, name: str, num_values: int
) -> "tuple[optuna.Study, JournalStorage | RDBStorage]":
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.storages import JournalStorage, RDBStorage
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    is_url = is_address(storage)
    directions = [optuna.study.StudyDirection.MINIMIZE] * num_values
    for attempt in range(_ATTEMPTS):
        try:
            kept = RDBStorage(storage) if is_url else JournalStorage(study_file(storage))
            study = optuna.create_study(
                storage=kept, study_name=name, directions=directions, load_if_exists=True
            )
            return study, kept
        # Processes that find an empty database make its tables at the same time, one after the
        # other: what another has made meanwhile is there when it is looked for again.
        except (SQLAlchemyError, StorageInternalError) as error:
            is_there = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not is_there or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _check(
    study: "optuna.Study",
    name: str,
    problem: Problem,
    num_values: int,
    depends: Mapping[str, str] | None,
) -> None:
    """Claims a new study for the problem; refuses one of another."""
    digest, losses = _digest(problem, depends is not None), _loss_by_layer(problem)
    if not study.user_attrs and not study.get_trials(deepcopy=False):
        # In one piece: another process must not see half of it.
        named = {
            "layers": list(problem.loss.layers),
            "precisions": list(map(str, problem.loss.precisions)),
        }
        told = {"depends": dict(depends)} if depends else {}
        study.set_user_attr(PROBLEM, {"digest": digest, "losses": losses, **named, **told})
    held = study.user_attrs.get(PROBLEM, {})  # another process may have been first
    wrong = ""
    if held.get("digest") != digest:
        wrong = "other layers, precisions, budgets, limits, or kind of loss"
    elif not np.allclose(held["losses"], losses, rtol=_SAME_LOSS, atol=0):
        wrong = "another predicted loss: another network, other data or another estimator"
    # A study of an older mpq does not say what its losses depend on, and may be of anything.
    elif changed := others(held.get("depends", {}), depends or {}):
        wrong = f"losses measured with other {', '.join(changed)}"
    elif len(study.directions) != num_values:
        wrong = f"{len(study.directions)} objectives instead of {num_values}"
    if wrong:
        raise MismatchError(
            f"the study {name!r} belongs to another problem ({wrong}); give this one a study of "
            "its own: another study name or another storage"
        )


def others(held: Mapping[str, str], depends: Mapping[str, str]) -> list[str]:
    """Names of what losses depend on that differ between a study and a search."""
    return [name for name in {**held, **depends} if held.get(name) != depends.get(name)]


def _digest(problem: Problem, is_measured: bool) -> str:
    """Of everything that is the same on every machine, to the last bit."""
    grouped = problem.grouped
    words = [*problem.loss.layers, *map(str, problem.loss.precisions), str(is_measured)]
    words += [f"{t.name} {t.unit}" for t in problem.constraints.tables]
    words.append(str(grouped.members))
    found = sha256("\n".join(words).encode())
    pairwise = grouped.pairwise
    pairs = (pairwise.first, pairwise.second, pairwise.values) if len(pairwise) else ()
    for array in (grouped.costs, grouped.limits, grouped.allowed, *pairs):
        found.update(array.tobytes())
    # A measured loss does not depend on them.
    if not is_measured and problem.interactions is not None:
        found.update(problem.interactions.factor.tobytes())
        found.update(repr(problem.interactions.shrinkage).encode())
    return found.hexdigest()


def _loss_by_layer(problem: Problem) -> list[float]:
    """Size of every group's predicted losses; estimates differ in their last digits by machine."""
    grouped = problem.grouped
    return [float(x) for x in np.where(grouped.allowed, np.abs(grouped.loss), 0.0).sum(axis=1)]


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing below a warning; afterwards it is as it was."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def reported(storage: str, kind: type[InputError] | type[SolverError]) -> Iterator[None]:
    """What optuna, SQLAlchemy and the file system raise, in the user's words."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_password(storage)
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        # Optuna raises one of its own from that of the module.
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        advice = _DRIVERS.get(cause.name or "", _first_line(cause))
        raise MissingDependencyError(
            f"storage {shown!r}: the database's driver is not installed: {advice}"
        ) from error
    except (SQLAlchemyError, StorageInternalError, OSError, RuntimeError) as error:
        raise kind(
            f"storage {shown!r} cannot be used: {_first_line(error)}; give a path such as "
            "search.log, or a database URL such as sqlite:///search.db"
        ) from error
    # A journal of other lines than optuna's ends in one of these, whichever line comes first.
    except (ValueError, LookupError, TypeError, AssertionError, AttributeError) as error:
        raise FileFormatError(
            f"storage {shown!r} is no journal of optuna's, or is damaged "
            f"({_first_line(error)}); give another path"
        ) from error


def _first_line(error: Exception) -> str:
    # Drivers quote the whole address, too.
    return without_password((str(error).splitlines() or [type(error).__name__])[0])


def without_password(text: str) -> str:
    """A text whose database addresses may be shown: messages end in logs.

    >>> without_password("postgresql://me:secret@host/db cannot be used")
    'postgresql://me:***@host/db cannot be used'
    """
    return re.sub(r"(\w://[^:/@\s]*):[^/\s]*@", r"\1:***@", text)
