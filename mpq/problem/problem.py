"""The question that every solver answers: which precision for which layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self, final

import numpy as np

from mpq._support import schema_versions
from mpq._support.arrays import Columns, Mask
from mpq._support.json_arrays import truth_values
from mpq._support.json_object import by_line, json_object
from mpq.errors import InputError, UnknownNameError
from mpq.network.layer import merge_ties
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.cut import Cut
from mpq.problem.grouped import Grouped
from mpq.problem.interactions import Interactions
from mpq.problem.limits import parse_limits
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.parts import Parts
from mpq.problem.schema import check
from mpq.problem.summed_rows import summed_rows
from mpq.problem.table_file import LongTable
from mpq.problem.tolerances import LAST_DIGITS
from mpq.problem.upgrade import HINT, upgraded
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """Least loss within budgets.

    Args:
        loss: ``[L, B]`` complete; usually nats.
        constraints: Budgets, ties, fixed layers and candidates; each table has the loss table's
            layers and precisions.
        interactions: If given, what pairs of layers lose beside the sum over ``loss``.
        mask: ``[L, B]`` precisions that can be taken, where the budgets' tables do not say it all;
            ``None``: they do.
        cuts: Assignments to differ from, each in how many layers.
        parts: Which layers the rows are parts of; ``None``: each is a layer.

    Raises:
        InputError: If tables do not fit together, or a layer has no precision left.
    """

    loss: CostTable
    constraints: Constraints = field(default_factory=Constraints)
    interactions: Interactions | None = None
    mask: Mask | None = None
    cuts: tuple[Cut, ...] = ()
    parts: Parts | None = None

    def __post_init__(self) -> None:
        if not self.loss.layers:
            raise InputError("there is no layer to assign a precision to")
        self.loss.require_complete()
        self._check_tables()
        self._check_shapes()
        known = set(self.loss.layers)
        for name in sorted(self.constraints.named - known):
            raise UnknownNameError("layer", name, known)
        # Ties that overlap would put a layer into two groups.
        merged = merge_ties(self.ties, self.loss.layers)
        object.__setattr__(self, "constraints", replace(self.constraints, ties=merged))
        self._check_allowed()

    @classmethod
    def of_any(
        cls, constraints: Constraints, layers: Sequence[str], candidates: Sequence[Precision]
    ) -> Self:
        """The problem that asks only whether the constraints can be met: nothing is lost.

        Args:
            constraints: What any assignment must keep, whatever the loss.
            layers: ``L`` names of the layers, in the network's order.
            candidates: ``B`` precisions, the columns of the constraints' tables.
        """
        values = np.zeros((len(layers), len(candidates)))
        return cls(
            CostTable("nothing", "nats", tuple(layers), tuple(candidates), values), constraints
        )

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Those of the constraints."""
        return self.constraints.budgets

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Those of the constraints, merged and in the layers' order."""
        return self.constraints.ties

    def _check_tables(self) -> None:
        for table in self.constraints.tables:
            if (table.layers, table.precisions) != (self.loss.layers, self.loss.precisions):
                raise InputError(
                    f"{table.name} has other layers or precisions than the loss {self.loss.name}"
                )

    def _check_shapes(self) -> None:
        shape = self.loss.values.shape
        if self.mask is not None and self.mask.shape != shape:
            raise InputError(f"the mask is {self.mask.shape}, the loss is {shape}")
        if self.parts is not None and self.parts.row_names != self.loss.layers:
            raise InputError(
                f"the {self.parts.counts.sum()} parts are not the {shape[0]} rows of the loss"
            )
        for cut in self.cuts:
            if len(cut.columns) != len(self.loss.layers):
                raise InputError(
                    f"a cut is of {len(cut.columns)} layers, the loss of {len(self.loss.layers)}"
                )
            if cut.columns.max() >= shape[1]:
                raise InputError(
                    f"a cut has the column {cut.columns.max()}, the loss {shape[1]} precisions"
                )
        if self.interactions is not None:
            if self.loss.pairs:
                raise InputError(
                    f"{self.loss.name}: a loss with interactions has no costs of pairs beside them"
                )
            _, *factor = self.interactions.factor.shape
            if tuple(factor) != shape:
                raise InputError(f"interactions are {factor}, the loss is {shape}")

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
    def runnable(self) -> Mask:
        """``[L, B]`` what the mask and all budgets' tables call available."""
        runnable = np.ones(self.loss.values.shape, dtype=np.bool_)
        if self.mask is not None:
            runnable &= self.mask
        for table in self.constraints.tables:
            runnable &= ~np.isnan(table.values)
        return runnable

    @cached_property
    def allowed(self) -> Mask:
        """``[L, B]`` what each layer may take, ties aside."""
        allowed = self.runnable.copy()
        row_of = {name: row for row, name in enumerate(self.loss.layers)}
        masks: dict[tuple[Precision, ...], Mask] = {}
        for name, key in self.constraints.choosable.items():
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
        # Every member looks up the same tuple, so that its group is there once, at its first layer.
        members = tuple(dict.fromkeys(tied.get(row, (row,)) for row in range(len(row_of))))
        rows = np.fromiter(chain.from_iterable(members), dtype=np.intp, count=len(row_of))
        starts = np.cumsum([0, *map(len, members[:-1])])
        tables, limits = summed_rows(self.loss, self.budgets, self.cuts)
        values = np.array([table.values for table in tables])
        # reduceat adds neighbours: rows are sorted by group. It is wrong for empty groups; none is.
        sums = np.add.reduceat(values[:, rows], starts, axis=1)
        allowed = np.logical_and.reduceat(self.allowed[rows], starts, axis=0)
        names = [[self.loss.layers[row] for row in group] for group in members]
        group_of = {name: group for group, tied in enumerate(names) for name in tied}
        alone, pairwise = PairwiseCosts.of(tables, group_of)
        sums += alone
        rounding = np.array([self._rounding(table) for table in tables[1:]])
        every = Grouped(sums[0], sums[1:], np.array(limits), allowed, members, pairwise, rounding)
        # A group without a choice is refused elsewhere.
        return every.among(allowed) if allowed.any(axis=1).all() else every

    def _rounding(self, table: CostTable) -> float:
        is_added_up = self.ties or table.constant or table.pairs
        return LAST_DIGITS * table.magnitude if is_added_up else 0.0

    def loss_of(self, columns: Columns) -> float:
        """Predicted loss of an assignment ``columns [L]``, in the loss table's unit."""
        additive = self.loss.total(columns)
        if self.interactions is None:
            return additive
        return additive + self.interactions.excess(columns)

    def precisions_of(self, columns: Columns) -> dict[str, Precision]:
        """Layer name to precision of an assignment ``columns [L]``, in the problem's order."""
        precisions = self.loss.precisions
        if self.parts is not None:
            return self.parts.precisions_of(columns, precisions)
        pairs = zip(self.loss.layers, columns.tolist(), strict=True)
        return {name: precisions[column] for name, column in pairs}

    def columns_of(self, precisions: Mapping[str, Precision]) -> Columns:
        """``[L]`` columns of a precision by layer name; inverse of ``precisions_of``.

        Raises:
            UnknownNameError: If a precision is none of the problem's.
        """
        if self.parts is not None:
            return self.parts.columns_of(precisions, self.loss.precisions)
        # Each looked up once: there are few, and layers or parts of layers by the thousand.
        column_of = {each: self.loss.index_of(each) for each in set(precisions.values())}
        return np.array([column_of[precisions[name]] for name in self.loss.layers], dtype=np.intp)

    def is_allowed(self, columns: Columns) -> bool:
        """Whether every layer may take its precision, and ties hold; budgets aside."""
        if not self.allowed[np.arange(len(columns)), columns].all():
            return False
        grouped = self.grouped
        return bool((grouped.expand(columns[grouped.first]) == columns).all())

    def is_feasible(self, columns: Columns) -> bool:
        """Whether an assignment is allowed, meets every budget and differs as it has to."""
        return (
            self.is_allowed(columns)
            and all(budget.is_met(columns) for budget in self.budgets)
            and all(cut.is_met(columns) for cut in self.cuts)
        )

    def within(self, limits: Sequence[str]) -> "Problem":
        """The same problem with other limits on resources that it has budgets for.

        Args:
            limits: As for ``Limit.parse``; budgets that are not named keep theirs.

        Raises:
            LimitError: If a limit is misspelled or has the wrong unit.
            UnknownNameError: If there is no budget for a resource.
        """
        held = {budget.resource: budget for budget in self.budgets}
        for limit in parse_limits(limits):
            if limit.resource not in held:
                raise UnknownNameError("resource", limit.resource, held)
            budget = held[limit.resource]
            held[limit.resource] = replace(budget, limit=limit.resolve(*budget.tables))
        # The tables stay, and with them what cannot run: the mask need not say it.
        return replace(self, constraints=replace(self.constraints, budgets=tuple(held.values())))

    def with_budgets(self, *budgets: Budget) -> "Problem":
        """The same problem with other budgets; what one that is dropped cannot run stays out."""
        constraints = replace(self.constraints, budgets=budgets)
        return replace(self, constraints=constraints, mask=self.runnable)

    def without(self, resource: str) -> "Problem":
        """The same problem without a limit on a resource; it may have had none."""
        return self.with_budgets(*(b for b in self.budgets if b.resource != resource))

    def limited(self, table: CostTable, limit: float) -> "Problem":
        """The same problem with this limit on a resource, in place of any that it had.

        Args:
            table: ``[L, B]`` of the resource.
            limit: Largest total, in the table's unit.
        """
        others = self.without(table.name)
        return others.with_budgets(*others.budgets, Budget.of(table, limit))

    def additive(self) -> "Problem":
        """The same problem without interactions."""
        return replace(self, interactions=None)

    def cheapest(self, table: CostTable) -> "Problem":
        """The problem of least cost in a resource, within the same budgets, whatever is lost.

        Args:
            table: ``[L, B]`` of the resource.
        """
        # A loss has to be complete. The mask keeps out what is 0 here because it cannot run.
        loss = replace(table, values=np.nan_to_num(table.values))
        return replace(self, loss=loss, interactions=None).available(table)

    def available(self, table: CostTable) -> "Problem":
        """The same problem without precisions that a table calls unavailable."""
        return replace(self, mask=self.runnable & ~np.isnan(table.values))

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
        return cheapest.with_budgets(*cheapest.budgets, Budget.of(self.loss, max_loss))

    def differing(self, columns: Columns, num_layers: int) -> "Problem":
        """The same problem without the assignments that are nearly a given one.

        Args:
            columns: ``[L]`` of the assignment to keep away from.
            num_layers: In how many layers an assignment differs from it at least.
        """
        return replace(self, cuts=(*self.cuts, Cut(columns, num_layers)))

    def to_json(self) -> str:
        """Everything, so that a problem can be solved again elsewhere; a line for every key.

        The factor of interactions is base64 of little-endian float32, in the order ``[S, L, B]``.
        """
        held = self.constraints
        data = {
            "schema_version": schema_versions.PROBLEM,
            "loss": self.loss.to_dict(),
            "budgets": [budget.to_dict() for budget in held.budgets],
            "ties": [list(tie) for tie in held.ties],
            "fixed": {name: str(precision) for name, precision in held.fixed.items()},
            "candidates": {name: [str(p) for p in ps] for name, ps in held.candidates.items()},
            "mask": None if self.mask is None else self.mask.tolist(),
            "cuts": [cut.to_dict() for cut in self.cuts],
            "interactions": None if self.interactions is None else self.interactions.to_dict(),
            # Of few problems: files without it are read by earlier versions as well.
            **({} if self.parts is None else {"parts": self.parts.to_dict()}),
        }
        return by_line(data)

    @classmethod
    def from_csv(cls, text: str, limits: Sequence[str] = (), allow_missing: bool = False) -> Self:
        """From tables that somebody else made.

        Args:
            text: A row for every layer at every precision, a column with its unit for the loss and
                for every resource; see ``LongTable``.
            limits: Such as ``weight_bytes=300KiB``, ``latency=0.6x:w8a8``; see ``Limit.parse``.
            allow_missing: Whether a layer may lack precisions; see ``LongTable.from_csv``.

        Raises:
            FileFormatError: If the text is no such table.
            LimitError: If a limit is misspelled or has the wrong unit.
            UnknownNameError: If a limit is on a resource that has no column.
        """
        return cls.from_table(LongTable.from_csv(text, allow_missing), limits)

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
            budgets.append(Budget.of(resource, limit.resolve(resource)))
        held = Constraints(tuple(budgets), table.ties, candidates=table.candidates)
        return cls(table.loss, held)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            FileFormatError: If the text is no such JSON, or of a later schema version.
        """
        data = upgraded(json_object(text, "problem", HINT))
        # The whole before its parts, so that the message has the place in the file.
        check(data, "", "problem")
        return cls._from_dict(data)

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Self:
        held = Constraints(
            tuple(map(Budget.from_dict, data["budgets"])),
            tuple(tuple(tie) for tie in data["ties"]),
            {name: Precision.parse(p) for name, p in data["fixed"].items()},
            {n: tuple(map(Precision.parse, ps)) for n, ps in data["candidates"].items()},
        )
        mask = data.get("mask")
        return cls(
            CostTable.from_dict(data["loss"]),
            held,
            Interactions.from_dict(data["interactions"]) if data.get("interactions") else None,
            None if mask is None else truth_values(mask, "not a problem: mask"),
            tuple(map(Cut.from_dict, data["cuts"])),
            Parts.from_dict(data["parts"]) if data.get("parts") else None,
        )
