"""The question that every solver answers: which precision for which layer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.network.layer import merge_ties
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.couplings import Couplings
from mpq.problem.interactions import Interactions
from mpq.problem.limits import parse_limits
from mpq.problem.table_file import LongTable
from mpq.quantization.precision import Precision

Columns = npt.NDArray[np.intp]
"""``[L]`` (or ``[G]``, for groups of tied layers) column of every layer's precision."""

SCHEMA_VERSION = 1


@final
@dataclass(frozen=True, eq=False)
class Grouped:
    """A problem with tied layers added up: what a solver works on.

    Every choice costs the sum of its cells and of its couplings: what a table counts besides its
    layers is in the cells of the first group.

    Args:
        loss: ``[G, B]`` in the loss table's unit.
        costs: ``[R, G, B]`` of the ``R`` budgets, 0 where a precision is not allowed.
        limits: ``[R]``.
        allowed: ``[G, B]`` whether a group may take a precision.
        members: For each group, the rows of its layers.
        couplings: What pairs of groups cost besides.
    """

    loss: npt.NDArray[np.float64]
    costs: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]
    allowed: npt.NDArray[np.bool_]
    members: tuple[tuple[int, ...], ...]
    couplings: Couplings

    def among(self, allowed: npt.NDArray[np.bool_]) -> "Grouped":
        """The same with fewer cells ``[G, B]``, each of them allowed here."""
        alone, couplings = self.couplings.separated(allowed)
        loss, costs = self.loss + alone[0], np.where(allowed, self.costs + alone[1:], 0.0)
        return replace(self, loss=loss, costs=costs, allowed=allowed, couplings=couplings)

    def expand(self, columns: Columns) -> Columns:
        """A choice per layer ``[L]`` from one per group ``[G]``."""
        return np.asarray(columns[self.group_of])

    @cached_property
    def group_of(self) -> Columns:
        """``[L]`` the group of every layer."""
        groups = np.empty(sum(map(len, self.members)), dtype=np.intp)
        sizes = [len(rows) for rows in self.members]
        rows = np.concatenate([np.array(rows) for rows in self.members])
        groups[rows] = np.repeat(np.arange(len(sizes)), sizes)
        return groups


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """Least loss within budgets.

    Args:
        loss: ``[L, B]`` complete; usually nats.
        budgets: Any number; each table has the loss table's layers and precisions.
        ties: Groups of layer names that must share a precision.
        fixed: Layers whose precision is given.
        candidates: Layers whose choices are restricted; others may take all.
        interactions: If given, what pairs of layers lose beside the sum over ``loss``.

    Raises:
        InputError: If tables do not fit together, or a layer has no precision left.
    """

    loss: CostTable
    budgets: tuple[Budget, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    fixed: Mapping[str, Precision] = field(default_factory=dict)
    candidates: Mapping[str, Sequence[Precision]] = field(default_factory=dict)
    interactions: Interactions | None = None

    def __post_init__(self) -> None:
        if not self.loss.layers:
            raise InputError("there is no layer to assign a precision to")
        self.loss.require_complete()
        self._check_tables()
        known = set(self.loss.layers)
        named = {name for tie in self.ties for name in tie} | set(self.fixed) | set(self.candidates)
        for name in sorted(named - known):
            raise UnknownNameError("layer", name, known)
        object.__setattr__(self, "ties", merge_ties(self.ties, self.loss.layers))
        self._check_allowed()

    def _check_tables(self) -> None:
        for table in (budget.table for budget in self.budgets):
            if (table.layers, table.precisions) != (self.loss.layers, self.loss.precisions):
                raise InputError(
                    f"{table.name} has other layers or precisions than the loss {self.loss.name}"
                )
        names = [budget.table.name for budget in self.budgets]
        if len(set(names)) != len(names):
            raise InputError(f"a resource has two budgets: {names}")
        if self.interactions is not None:
            if self.loss.pairs:
                raise InputError(
                    f"{self.loss.name}: a loss with interactions has no costs of pairs beside them"
                )
            _, *shape = self.interactions.factor.shape
            if tuple(shape) != self.loss.values.shape:
                raise InputError(f"interactions are {shape}, the loss is {self.loss.values.shape}")

    def _check_allowed(self) -> None:
        allowed = self.grouped.allowed
        if not allowed.any(axis=1).all():
            group = int(np.flatnonzero(~allowed.any(axis=1))[0])
            names = [self.loss.layers[row] for row in self.grouped.members[group]]
            raise InputError(
                f"no precision is left for {', '.join(map(repr, names))} among "
                f"{', '.join(map(str, self.loss.precisions))}: the device runs none of them there, "
                "or ties, fixed precisions and candidates contradict each other"
            )

    @cached_property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """``[L, B]`` what each layer may take, ties aside."""
        allowed = np.ones(self.loss.values.shape, dtype=np.bool_)
        for budget in self.budgets:
            allowed &= ~np.isnan(budget.table.values)
        row_of = {name: row for row, name in enumerate(self.loss.layers)}
        assignments = {**self.candidates, **{name: (only,) for name, only in self.fixed.items()}}
        masks: dict[tuple[Precision, ...], npt.NDArray[np.bool_]] = {}
        for name, precisions in assignments.items():
            key = tuple(precisions)
            if key not in masks:  # most layers have the same candidates
                masks[key] = np.zeros(len(self.loss.precisions), dtype=np.bool_)
                masks[key][[self.loss.index_of(precision) for precision in key]] = True
            allowed[row_of[name]] &= masks[key]
        return allowed

    @cached_property
    def grouped(self) -> Grouped:
        """Tied layers added up, in the order of their first members."""
        row_of = {name: row for row, name in enumerate(self.loss.layers)}
        tied = {row_of[name]: tuple(row_of[n] for n in tie) for tie in self.ties for name in tie}
        members = tuple(dict.fromkeys(tied.get(row, (row,)) for row in range(len(row_of))))
        rows = np.concatenate([np.array(group) for group in members])
        starts = np.cumsum([0, *map(len, members[:-1])])
        tables = [self.loss, *(budget.table for budget in self.budgets)]
        values = np.array([table.values for table in tables])
        sums = np.add.reduceat(values[:, rows], starts, axis=1)
        allowed = np.logical_and.reduceat(self.allowed[rows], starts, axis=0)
        limits = np.array([budget.limit for budget in self.budgets])
        names = [[self.loss.layers[row] for row in group] for group in members]
        group_of = {name: group for group, tied in enumerate(names) for name in tied}
        alone, couplings = Couplings.of(tables, group_of)
        sums += alone
        every = Grouped(sums[0], sums[1:], limits, allowed, members, couplings)
        # A group without a choice is refused elsewhere.
        return every.among(allowed) if allowed.any(axis=1).all() else every

    def loss_of(self, columns: Columns) -> float:
        """Predicted loss of an assignment ``columns [L]``, in the loss table's unit."""
        additive = self.loss.total(columns)
        if self.interactions is None:
            return additive
        return additive + self.interactions.excess(columns)

    def precisions_of(self, columns: Columns) -> dict[str, Precision]:
        """Layer name to precision of an assignment ``columns [L]``, in the problem's order."""
        precisions = self.loss.precisions
        pairs = zip(self.loss.layers, columns.tolist(), strict=True)
        return {name: precisions[column] for name, column in pairs}

    def columns_of(self, precisions: Mapping[str, Precision]) -> Columns:
        """``[L]`` columns of a precision by layer name; inverse of ``precisions_of``.

        Raises:
            UnknownNameError: If a precision is none of the problem's.
        """
        indices = [self.loss.index_of(precisions[name]) for name in self.loss.layers]
        return np.array(indices, dtype=np.intp)

    def is_allowed(self, columns: Columns) -> bool:
        """Whether every layer may take its precision, and ties hold; budgets aside."""
        if not self.allowed[np.arange(len(columns)), columns].all():
            return False
        tied = (list(rows) for rows in self.grouped.members if len(rows) > 1)
        return all(len(set(columns[rows])) == 1 for rows in tied)

    def is_feasible(self, columns: Columns) -> bool:
        """Whether an assignment is allowed and meets every budget."""
        return self.is_allowed(columns) and all(b.is_met(columns) for b in self.budgets)

    def within(self, limits: Sequence[str]) -> "Problem":
        """The same problem with other limits on resources that it has budgets for.

        Args:
            limits: As for ``Limit.parse``; budgets that are not named keep theirs.

        Raises:
            LimitError: If a limit is misspelled or has the wrong unit.
            UnknownNameError: If there is no budget for a resource.
        """
        tables: dict[str, list[CostTable]] = {}
        for budget in self.budgets:
            tables.setdefault(budget.resource, []).append(budget.table)
        amounts: dict[str, float] = {}
        for limit in parse_limits(limits):
            if limit.resource not in tables:
                raise UnknownNameError("resource", limit.resource, tables)
            amounts[limit.resource] = limit.resolve(*tables[limit.resource])
        budgets = (Budget(b.table, amounts.get(b.resource, b.limit)) for b in self.budgets)
        return replace(self, budgets=tuple(budgets))

    def without(self, resource: str) -> "Problem":
        """The same problem without a limit on a resource; it may have had none."""
        held = tuple(budget for budget in self.budgets if budget.resource != resource)
        return replace(self, budgets=held)

    def limited(self, table: CostTable, limit: float) -> "Problem":
        """The same problem with this limit on a resource, in place of any that it had.

        Args:
            table: ``[L, B]`` of the resource.
            limit: Largest total, in the table's unit.
        """
        return replace(self, budgets=(*self.without(table.name).budgets, Budget(table, limit)))

    def additive(self) -> "Problem":
        """The same problem without interactions."""
        return replace(self, interactions=None)

    def cheapest(self, table: CostTable) -> "Problem":
        """The problem of least cost in a resource, within the same budgets, whatever is lost.

        Args:
            table: ``[L, B]`` of the resource.
        """
        loss = replace(table, values=np.nan_to_num(table.values))
        return replace(self, loss=loss, interactions=None).available(table)

    def available(self, table: CostTable) -> "Problem":
        """The same problem without precisions that a table calls unavailable."""
        held = [budget.table.name for budget in self.budgets]
        if table.name in held:
            return self
        # A budget that always holds; its `nan` cells still count.
        loose = float(np.nan_to_num(np.abs(table.values)).max(axis=1).sum()) * 2
        mask = replace(table, constant=0.0, pairs=())
        return replace(self, budgets=(*self.budgets, Budget(mask, loose)))

    def least(self, table: CostTable, max_loss: float) -> "Problem":
        """The problem of least cost in a resource, while budgets hold and the loss has a limit.

        Args:
            table: ``[L, B]`` of the resource.
            max_loss: Largest total of the loss table, in its unit.

        Raises:
            InputError: If there are interactions, whose loss is no sum.
        """
        if self.interactions is not None:
            raise InputError("a loss with interactions is no budget: use problem.additive()")
        cheapest = self.cheapest(table)
        return replace(cheapest, budgets=(*cheapest.budgets, Budget(self.loss, max_loss)))

    def differing(self, columns: Columns, num_layers: int) -> "Problem":
        """The same problem without the assignments that are nearly a given one.

        Args:
            columns: ``[L]``.
            num_layers: In how many layers an assignment differs from it at least.
        """
        same = np.zeros(self.loss.values.shape)
        same[np.arange(len(columns)), columns] = 1.0
        names = [budget.table.name for budget in self.budgets]
        name = f"same_as_{sum(name.startswith('same_as_') for name in names)}"
        table = CostTable(name, "layers", self.loss.layers, self.loss.precisions, same)
        return replace(self, budgets=(*self.budgets, Budget(table, len(columns) - num_layers)))

    def to_json(self) -> str:
        """Everything, so that a problem can be solved again elsewhere.

        The factor of interactions is base64 of little-endian float32, in the order ``[S, L, B]``.
        """
        data = {
            "schema_version": SCHEMA_VERSION,
            "loss": self.loss.to_dict(),
            "budgets": [{"limit": b.limit, "table": b.table.to_dict()} for b in self.budgets],
            "ties": [list(tie) for tie in self.ties],
            "fixed": {name: str(precision) for name, precision in self.fixed.items()},
            "candidates": {name: [str(p) for p in ps] for name, ps in self.candidates.items()},
            "interactions": None if self.interactions is None else self.interactions.to_dict(),
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_csv(cls, text: str, limits: Sequence[str] = ()) -> Self:
        """From tables that somebody else made.

        Args:
            text: A row for every layer at every precision, a column with its unit for the loss and
                for every resource; see ``LongTable``.
            limits: Such as ``weight_bytes=300KiB``, ``latency=0.6x:w8a8``; see ``Limit.parse``.

        Raises:
            FileFormatError: If the text is no such table.
            LimitError: If a limit is misspelled or has the wrong unit.
            UnknownNameError: If a limit is on a resource that has no column.
        """
        return cls.from_table(LongTable.from_csv(text), limits)

    @classmethod
    def from_table(cls, table: LongTable, limits: Sequence[str] = ()) -> Self:
        """As ``from_csv``, of a table that was read already.

        Raises:
            LimitError: If a limit is misspelled or has the wrong unit.
            UnknownNameError: If a limit is on a resource that has no column.
        """
        budgets = []
        for limit in parse_limits(limits):
            if limit.resource not in table.resources:
                raise UnknownNameError("resource", limit.resource, table.resources)
            resource = table.resources[limit.resource]
            budgets.append(Budget(resource, limit.resolve(resource)))
        return cls(table.loss, tuple(budgets), table.ties, candidates=table.candidates)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            FileFormatError: If the text is no such JSON, or of a later schema version.
        """
        try:
            data: Any = json.loads(text)
            if data["schema_version"] != SCHEMA_VERSION:
                raise FileFormatError(
                    f"problem of schema version {data['schema_version']}; this mpq reads version "
                    f"{SCHEMA_VERSION}: update mpq"
                )
            budgets = (
                Budget(CostTable.from_dict(b["table"]), float(b["limit"])) for b in data["budgets"]
            )
            return cls(
                CostTable.from_dict(data["loss"]),
                tuple(budgets),
                tuple(tuple(tie) for tie in data["ties"]),
                {name: Precision.parse(p) for name, p in data["fixed"].items()},
                {n: tuple(map(Precision.parse, ps)) for n, ps in data["candidates"].items()},
                Interactions.from_dict(data["interactions"]) if data.get("interactions") else None,
            )
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"not a problem: {error!r}") from error
