"""Groups of layers at budgets that add up: their ratio is swept, every answer is measured."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice, product
from math import ceil, inf, isfinite, nan
from typing import ClassVar, Final, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.layer_groups import LayerGroups
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.solvers._base import Losses, Solver
from mpq.solvers.additive.answers import check_effort, require_additive, require_no_pairs
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.black_box._base import asked_losses, predicted, require_objective
from mpq.solvers.black_box.pace import Pace

MOST_RATIOS: Final = 10_000
"""That are swept: each is a problem to solve, and an answer to measure."""
_INSIDE = 1e-12
"""Relative distance that the last group keeps from what is left, whose sum is rounded."""


@final
@dataclass(frozen=True)
class SweptBudgets(Solver):
    r"""The least loss of every group of layers within a share of the budget; shares are swept.

    .. math:: z(k) = \Bigl( \arg\min_{z_g} \bigl\{ \textstyle\sum_{\ell \in g} s_{\ell z_\ell} :
        c_g(z_g) \le u_g C_g \bigr\} \Bigr)_g, \quad u_1 : u_2 : \dots = k_1 : k_2 : \dots : 1,
        \quad \sum_g u_g C_g = \text{limit}

    with :math:`C_g` what a group costs at its dearest precisions, so that ``k`` is the ratio of
    mean bits where cost is bits. Losses of groups are never compared, and may be of metrics that
    have nothing in common: of all answers the one with the least measured loss is taken. MixDQ
    (Zhao et al. 2024, arXiv:2405.17873) sweeps ten ratios of two groups, and leaves the inputs of
    the most sensitive layers as they are (``keep``). Departs from it in that a share that a group
    cannot use goes to the others, where it passes over the ratio, and in that one limit is swept,
    not several below it too. Without an objective the least predicted sum is taken. Proves nothing.

    Args:
        groups: See ``LayerGroups``; metrics are not read.
        low: The least ratio.
        high: The largest ratio.
        num_ratios: From one to the other, evenly; to the power of the groups but one, which may be
            ``MOST_RATIOS`` at most. Answers are solved for and measured a batch at a time.
        keep: Share of every group's layers, those whose inputs lose most at their fewest bits, that
            get the most bits of inputs there are, where all others do not. 0: layers choose.
        batch_size: Assignments that are measured at once.
        is_measured: As in ``Evolutionary``.
        time_limit_s: As in ``Evolutionary``.
        objective: Losses of a batch; ``None``: the problem's own.

    Raises:
        InputError: If a number is out of range, a group has no pattern, or the ratios are too many.
    """

    name: ClassVar[str] = "swept-budgets"
    summary: ClassVar[str] = "measured losses: MixDQ, groups of layers at shares that are swept"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    is_repeatable: ClassVar[bool] = False

    groups: str = "*"
    low: float = 0.46
    high: float = 1.36
    num_ratios: int = 10
    keep: float = 0.0
    batch_size: int = 16
    is_measured: bool = False
    time_limit_s: float | None = None
    objective: Losses | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_effort(self.name, 0.0, self.time_limit_s)
        LayerGroups.parse(self.groups)
        if not (0 < self.low <= self.high and isfinite(self.high)) or not 0 <= self.keep <= 1:
            raise InputError(
                f"{self.name} needs 0 < low <= high and keep from 0 to 1; got {self.low}, "
                f"{self.high} and {self.keep}"
            )
        if self.num_ratios < 1 or self.batch_size < 1:
            raise InputError(
                f"{self.name} needs num_ratios >= 1 and batch_size >= 1; got {self.num_ratios} and "
                f"{self.batch_size}"
            )
        if self._count > MOST_RATIOS:
            others = self._num_groups - 1
            raise InputError(
                f"{self.name}: {self._num_groups} groups at num_ratios={self.num_ratios} are "
                f"{self.num_ratios} ** {others} = {self._count:,} ratios, above {MOST_RATIOS:,}: "
                f"take fewer groups, or num_ratios={_largest_root(MOST_RATIOS, others)}"
            )

    @property
    def _num_groups(self) -> int:
        return len(LayerGroups.parse(self.groups).patterns)

    @property
    def _count(self) -> int:
        """Of all ratios."""
        return int(self.num_ratios ** (self._num_groups - 1))

    @property
    def is_measuring(self) -> bool:
        """See ``Solver.is_measuring``: as the option says."""
        return self.is_measured

    def measuring_s(self, each_s: float) -> float:
        """See ``Solver.measuring_s``: of all ratios, or as long as the time limit."""
        limit_s = inf if self.time_limit_s is None else self.time_limit_s
        return min(self._count * each_s, limit_s)

    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""
        return replace(self, objective=losses)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; several budgets, or ``keep``, may leave it without an answer.

        Raises:
            InputError: If the problem has interactions or costs of pairs of layers, a group has no
                layer, the loss is to be measured and there is no objective that measures it, or an
                objective does not return one loss for each assignment.
            SolverError: If a loss is ``nan``.
        """
        start = time.perf_counter()
        require_additive(problem, self.name)
        require_no_pairs(problem, self.name)
        require_objective(self.is_measured, self.objective)
        exact = solve_additive(problem)
        if exact.columns is None:
            return replace(exact, solver=self.name)
        columns, loss, was_stopped = self._best(problem)
        if columns is None:
            why = "no ratio of the groups' budgets leaves each group an assignment"
            seconds = time.perf_counter() - start
            return Solution(Status.UNKNOWN, None, nan, None, self.name, seconds, why=why)
        # A bound is of the predicted sum, and says nothing of what is measured.
        bound = exact.bound if self.objective is None else None
        bound = None if bound is None else min(bound, loss)
        status = Status.TIME_LIMIT if was_stopped else Status.FEASIBLE
        status = Status.OPTIMAL if bound == loss else status
        return Solution(status, columns, loss, bound, self.name, time.perf_counter() - start)

    def _answers(self, problem: Problem) -> Iterator[Columns]:
        """``[L]`` each, all different, by rising ratios."""
        of_layer = np.array(LayerGroups.parse(self.groups).of(problem.loss.layers))
        asked = problem if self.keep == 0 else _keeping(problem, of_layer, self.keep)
        count = int(of_layer.max()) + 1
        ratios = np.linspace(self.low, self.high, self.num_ratios).tolist()
        known = set[bytes]()
        every = product(ratios, repeat=count - 1)
        for chosen in track(every, f"{self.name}, shares of groups", self._count):
            shared = _shared(asked, of_layer, [*chosen, 1.0])
            columns = None if shared is None else solve_additive(shared).columns
            if columns is None or not problem.is_feasible(columns):
                continue
            # As many bytes, however many layers there are.
            key = blake2b(columns.tobytes(), digest_size=16).digest()
            if key not in known:
                known.add(key)
                yield columns

    def _best(self, problem: Problem) -> tuple[Columns | None, float, bool]:
        """Columns and loss of the best answer; whether the time was over before all were found."""
        objective, pace = self.objective or predicted(problem), Pace(self.time_limit_s)
        answers, best, least, done = self._answers(problem), None, inf, 0
        while not pace.stops(done):
            part = list(islice(answers, min(self.batch_size, pace.num_fitting or self.batch_size)))
            if not part:
                break
            start, found = time.perf_counter(), np.array(part, dtype=np.intp)
            losses = asked_losses(self.name, objective, found)
            place = int(losses.argmin())
            if best is None or losses[place] < least:
                best, least = found[place], float(losses[place])
            done += len(part)
            pace.took(time.perf_counter() - start, len(part))
        if best is not None and self.objective is None:
            least = problem.loss_of(best)
        return best, least, pace.was_stopped


def _largest_root(number: int, power: int) -> int:
    """The largest whole number that to this power is at most a number."""
    root = 1
    while (root + 1) ** power <= number:
        root += 1
    return root


def _shared(problem: Problem, of_layer: Columns, ratios: Sequence[float]) -> Problem | None:
    """The same problem where every group has a part of every budget; ``None``: it has not."""
    budgets = []
    for budget in problem.budgets:
        table = budget.sum_table
        if table is None:
            budgets.append(budget)  # a maximum over steps is no sum that could be shared
            continue
        cost = np.where(problem.allowed, np.nan_to_num(table.values), np.nan)  # [L, B]
        least, most = (_by_group(f(cost, axis=1), of_layer) for f in (np.nanmin, np.nanmax))
        parts = _parts(budget.limit - table.constant, least, most, np.array(ratios))
        if parts is None:
            return None
        budgets += [_of_group(table, of_layer == g, part) for g, part in enumerate(parts)]
    return problem.with_budgets(*budgets)


def _by_group(values: Array, of_layer: Columns) -> Array:
    return np.array([values[of_layer == g].sum() for g in range(int(of_layer.max()) + 1)])


def _of_group(table: CostTable, rows: Mask, limit: float) -> Budget:
    name = f"{table.name} of {table.layers[int(np.flatnonzero(rows)[0])]} and its group"
    values = np.where(rows[:, None], table.values, 0.0 * table.values)  # nan stays nan
    return Budget.of(replace(table, name=name, values=values, constant=0.0), limit)


def _parts(limit: float, least: Array, most: Array, ratios: Array) -> list[float] | None:
    """``[G]`` that add up to the limit; what a group cannot use, or lacks, is the others'."""
    if least.sum() > limit:
        return None
    parts = np.clip(ratios * most * (limit / (ratios * most).sum()), least, most)
    # What clipping took or gave is spread over the groups that can give or take, by their shares.
    for _ in range(len(parts)):
        free = limit - parts.sum()
        room = (parts < most) if free > 0 else (parts > least)
        weight = np.where(room, ratios * most, 0.0)
        if abs(free) <= _INSIDE * abs(limit) or weight.sum() == 0:
            break
        parts = np.clip(parts + free * weight / weight.sum(), least, most)
    return [float(part) for part in parts]


def _keeping(problem: Problem, of_layer: Columns, keep: float) -> Problem:
    """The same where the most sensitive layers of every group, and they only, keep their inputs.

    Tied layers are one, in the group of the first of them.
    """
    grouped, precisions = problem.grouped, problem.loss.precisions
    rows_of = zip(grouped.loss, grouped.allowed, strict=True)
    losses = np.array([_input_loss(row, can, precisions) for row, can in rows_of])
    of_first, kept = of_layer[grouped.first], set[int]()
    for group in np.unique(of_first).tolist():
        rows = np.flatnonzero(of_first == group)
        order = rows[np.argsort(-losses[rows], kind="stable")]
        kept.update(order[: ceil(keep * len(rows))].tolist())
    candidates = {}
    for index, members in enumerate(grouped.members):
        own = _taken(grouped.allowed[index], precisions)
        most = max(p.activation.number.bits for p in own)
        fewer = tuple(p for p in own if p.activation.number.bits < most)
        of_most = tuple(p for p in own if p.activation.number.bits == most)
        chosen = of_most if index in kept or not fewer else fewer
        candidates.update(dict.fromkeys((problem.loss.layers[row] for row in members), chosen))
    constraints = replace(problem.constraints, candidates=candidates)
    return replace(problem, constraints=constraints)


def _taken(allowed: Mask, precisions: Sequence[Precision]) -> list[Precision]:
    return [p for p, can in zip(precisions, allowed, strict=True) if can]


def _input_loss(values: Array, allowed: Mask, precisions: Sequence[Precision]) -> float:
    """What a group's input loses at its fewest bits, the weight at its most."""
    own = [(p.weight.number.bits, p.activation.number.bits, float(x))
           for p, x, can in zip(precisions, values, allowed, strict=True) if can]  # fmt: skip
    most = max(w for w, _, _ in own)
    by_bits = sorted((a, x) for w, a, x in own if w == most)
    return by_bits[0][1] - by_bits[-1][1]
