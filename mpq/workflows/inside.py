"""Bits inside layers: the answer, with parts of its layers at weights of different bits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias, final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq._support.events import warn
from mpq.errors import InfeasibleError, InputError
from mpq.hardware_profiles.part_costs import check_part_resource, part_costs
from mpq.network.heads import Heads
from mpq.network.layer import Layer
from mpq.problem.alike_formats import open_weights
from mpq.problem.constraints import Constraints
from mpq.problem.layer_parts import InputParts, LayerParts, OutputParts
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.split import ACTIVATIONS, STEPS, Split
from mpq.quantization.channel_bits import MOST_BITS, OUTPUTS
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import tied_bits
from mpq.report.safeguard import AnswerCheck
from mpq.sensitivity import ESTIMATORS, Sensitivity
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.activation_blocks import solved_in_blocks
from mpq.workflows.best_in_parts import best_in_parts
from mpq.workflows.bits_by_step import solved_by_step
from mpq.workflows.coupled_rows import round_parts, shares_of_inputs
from mpq.workflows.defaults import SOLVER
from mpq.workflows.heads_inside import heads_of, tied_rows
from mpq.workflows.method import Method
from mpq.workflows.optimism import factors, is_too_low, raised
from mpq.workflows.part_prices import by_channels, channel_losses, in_company
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task

PROVED_PARTS: Final = 2000
"""Of inputs and groups, up to which they are solved to the optimum; above to 0.01 %."""
QUICK: Final = "lagrangian:gap=0.0001"
FEW: Final = 2
"""Widths of a layer, by which it is asked first which ones pay."""
Answer: TypeAlias = tuple[Problem, Solution]
_WHY_WEIGHTS_WHOLE: Final = (
    "none has two formats of weights that differ in bits alone and a price of each channel, or "
    "what names the parts' bits is more than the limits leave"
)
_WHY_WHOLE: Final = {
    ACTIVATIONS: "none has two formats of inputs with scales of blocks that differ in bits alone, "
    "beside the same weight",
    STEPS: "none has two formats of inputs that differ in bits alone, beside the same weight, or "
    "the estimator knows nothing of steps: take sketch or auto",
}


def check_split(task: Task, method: Method, resources: Iterable[str]) -> None:
    """Refuses what does not go with parts of layers, before anything runs.

    Args:
        task: What was asked.
        method: How.
        resources: That are limited.

    Raises:
        InputError: Names the part, and what to do.
    """
    if task.parts is None:
        return
    task.parts.check([*task.precisions, *(p for _, own in task.rules.allowed for p in own)])
    for resource in resources:
        check_part_resource(resource, task.parts.axis)
    if task.parts.axis == STEPS and (task.steps is None or task.steps.clusters == 1):
        raise InputError(
            "split steps (--split) needs clusters of steps: say which argument holds the step "
            "(--step, Task(steps=...)), with more than one cluster"
        )
    if task.streamed:
        raise InputError(f"{task.streamed}. split (--split) is not done so: allow more memory")
    if task.parts.of_weights and not method.estimator.prices_channels:
        able = ", ".join(part.name for part in ESTIMATORS if part.prices_channels)
        raise InputError(
            f"split (--split) needs prices of channels, which the estimator "
            f"{method.estimator.name!r} does not know: take {able}"
        )
    asked = {
        "minimize": method.objective is not None,
        "a solver that measures": method.solver.is_measuring,
        f"to={task.to} (--to)": task.target is not None
        and not (task.target.holds_channels and task.parts.axis == OUTPUTS),
        "sequential_rounding (--sequential-rounding)": task.sequential_rounding,
        "recalibrate (--recalibrate)": task.recalibrate,
        "bias_correction (--bias-correction)": task.bias_correction,
        "workers (--workers)": task.workers is not None,
        # Layers are others inside, and a tie that the user asked for would be gone unsaid.
        "tie (--tie, --tie-blocks, --tie-inner)": task.parts.of_weights and task.rules.has_ties,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise InputError(f"split (--split) does not go with {what}: leave one of them out")


def answer_in_parts(
    prepared: Prepared,
    split: Split,
    problem: Problem,
    solution: Solution,
    found: Sensitivity,
    is_checked: bool = True,
) -> tuple[Problem, Solution, AnswerCheck | None]:
    """The answer in parts, unless held-out examples say that it is worse than that of whole layers.

    Worse is what loses more beyond the standard error, and on most examples; so is an answer that a
    uniform precision within the budgets betters so; and one that is not better, where codes fit too
    few examples to be priced by them. Where channels have several kinds of prices
    (``solved_in_parts``), that answer is compared which loses less on these examples. Takes a solve
    and a forward pass over the held-out examples for each.

    Args:
        prepared: Network, prices and examples.
        split: Which parts layers have.
        problem: That of whole layers.
        solution: Its answer.
        found: The estimate.
        is_checked: Whether held-out examples are asked at all; else the answer in parts stands.

    Returns:
        The problem and its answer, and the answers beside each other, if they were measured; where
        no layer is divided, which is told, the answer that was given, and ``None``.
    """
    parted = _parted(prepared, split, problem, solution, found)
    divided = [each for each in parted if _is_divided(split, *each)]
    if not divided:
        return _undivided(split, parted, problem, solution)
    if is_checked:
        return best_in_parts(prepared, divided, problem, solution)
    asked, inside = divided[0]
    round_parts(prepared, [inside.precisions(asked)])
    return asked, inside, None


def _is_divided(split: Split, asked: Problem, inside: Solution) -> bool:
    """Whether some layer's weights, or inputs, have more than one width."""
    chosen = inside.precisions(asked).values()
    formats = (x.weight if split.of_weights else x.activation for x in chosen)
    return any(x.channels is not None or x.steps is not None for x in formats)


def _parted(
    prepared: Prepared, split: Split, problem: Problem, solution: Solution, found: Sensitivity
) -> tuple[Answer, ...]:
    if split.of_weights:
        return solved_in_parts(prepared, split, problem, solution, found)
    if split.axis == STEPS:
        answer = solved_by_step(prepared, problem, solution, found)
    else:
        answer = solved_in_blocks(prepared, split, problem, solution)
    return () if answer is None else (answer,)


def _undivided(
    split: Split, parted: Sequence[Answer], problem: Problem, solution: Solution
) -> tuple[Problem, Solution, None]:
    """The answer where no layer has parts of different bits, and a warning why."""
    if not parted:
        why = _WHY_WHOLE.get(split.axis, _WHY_WEIGHTS_WHOLE)
        warn(f"no layer is divided (--split {split}): {why}", stacklevel=3)
        return problem, solution, None
    asked, inside = parted[0]
    is_whole = len(asked.loss.layers) == len(problem.loss.layers)
    why = "each is one part" if is_whole else "by the prices of parts whole ones lose least"
    warn(f"no layer is divided (--split {split}): {why}", stacklevel=3)
    # Parts may differ at other points of its frontier.
    is_same = inside.precisions(asked) == solution.precisions(problem)
    return *((asked, inside) if is_same else (problem, solution)), None


def solved_in_parts(
    prepared: Prepared, split: Split, problem: Problem, solution: Solution, found: Sensitivity
) -> tuple[Answer, ...]:
    """Problems of parts and their optima; none where no part can be chosen.

    Inputs keep their precisions: rows are parts of weights. The first prices channels by
    themselves: errors add up like noise where codes fit data; where weights are rounded to nearest
    they are scaled so that a layer's add up to its own. Where these two differ, output channels
    are priced so as well, beside what the other layers' errors do; and times what unseen examples
    say of the layer, where they do (``mpq.workflows.optimism``). Arguments as above.
    """
    dividing = Dividing.of(prepared, split, problem, solution, found)
    if dividing is None:
        return ()
    divisions = [dividing]
    if split.axis == OUTPUTS and found.by_channels is not None:
        divisions.append(dividing.in_company(solution, found))
    if is_too_low(prepared.rounded.optimism):
        divisions.append(dividing.for_unseen())
    answers = (_solved(each) for each in divisions)
    return tuple(answer for answer in answers if answer is not None)


def _solved(dividing: "Dividing") -> Answer | None:
    """``None``: saying which part has which bits takes too much."""
    axis = dividing.split.axis
    # Tens of thousands of parts that cost the same take minutes to 0.001 %.
    is_quick = axis != OUTPUTS and len(dividing.losses) > PROVED_PARTS
    solver = SOLVERS.build(QUICK if is_quick else SOLVER, dividing.prepared.task.seed)
    try:
        if axis == OUTPUTS:
            asked = dividing.posed(dividing.open_to)
            return asked, solve(solver, asked)
        # What names the widths of many small parts is much beside what they gain, and is little
        # where few are used: which these are is asked as if there were two in each layer.
        used = dividing.used(solve(solver, dividing.posed(dividing.open_to, FEW)))
        used = dividing.used(solve(solver, dividing.posed(used)))
        asked = dividing.posed(used)
        return asked, solve(solver, asked)
    except InfeasibleError:
        return None


@final
@dataclass(frozen=True, eq=False)
class Dividing:
    """What problems of parts have in common, whichever formats parts may take.

    Args:
        prepared: Network, prices and examples.
        split: Which parts layers have.
        problem: That of whole layers.
        precisions: Its answer.
        parts: The rows, without what names their bits.
        channels: Layer name to ``[O, B]``, what each channel loses.
        losses: ``[R, B]``.
        open_to: ``[L, B]`` what a weight's parts may take.
        ties: Names of rows that share their bits.
    """

    prepared: Prepared
    split: Split
    problem: Problem
    precisions: Mapping[str, Precision]
    parts: Parts
    channels: Mapping[str, Array]
    losses: Array
    open_to: Mask
    ties: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        split: Split,
        problem: Problem,
        solution: Solution,
        found: Sensitivity,
    ) -> Self | None:
        """``None`` where no layer can be divided. Arguments as those of ``answer_in_parts``."""
        layers = prepared.pricing.layers
        assert solution.columns is not None
        owners = {x.name: x.weight_of for x in layers if x.weight_of is not None}
        losses = channel_losses(found, owners)
        open_to = open_weights(problem, solution.columns, split.axis)
        rows, precisions = enumerate(problem.loss.layers), solution.precisions(problem)
        names = {name for row, name in rows if name in losses and open_to[row].sum() > 1}
        heads = heads_of(prepared, split)
        names &= names if heads is None else heads.parts.keys()
        blocks = {x.name: _block(x, split, precisions, heads) for x in layers if x.name in names}
        if split.axis != OUTPUTS and prepared.quantizer.stored:
            losses = shares_of_inputs(prepared, split, losses, blocks)
            names &= losses.keys()
        if not names:
            return None
        divided = {
            x.name: _divided(
                x,
                split,
                split.parts(losses[x.name]) if heads is None else heads.parts[x.name],
                blocks[x.name],
            )
            for x in layers
            if x.name in names
        }
        parts = Parts(problem.loss.layers, divided, owners)
        values = by_channels(parts, losses, found, problem)
        ties = tied_rows(heads, parts, open_to) if heads is not None and split.is_tied else ()
        return cls(prepared, split, problem, precisions, parts, losses, values, open_to, ties)

    def in_company(self, solution: Solution, found: Sensitivity) -> Self:
        """Priced beside the errors that other layers have in the answer by layers."""
        assert solution.columns is not None
        values = in_company(
            self.parts, self.channels, self.problem, found.interactions, solution.columns
        )
        return replace(self, losses=values)

    def for_unseen(self) -> Self:
        """Priced times what unseen examples say that each layer's prices are too low by."""
        rounded = self.prepared.rounded
        by_layer = factors(self.problem.loss, rounded.optimism, rounded.unhelped)
        by = np.repeat(by_layer, self.parts.counts, axis=0)
        return replace(self, losses=raised(self.losses, by))

    def posed(self, open_to: Mask, most_widths: int | None = None) -> Problem:
        """The problem of parts that may take these formats, ``[L, B]``.

        Args:
            open_to: See there.
            most_widths: In a layer, that are counted; ``None``: all that it may use.
        """
        has_codes = [p.weight.number.has_codes for p in self.problem.loss.precisions]
        # How many formats are named, and how many have scales.
        widths = np.stack([open_to.sum(axis=1), open_to[:, has_codes].sum(axis=1)], axis=1)
        counted = widths if most_widths is None else np.minimum(widths, most_widths)
        code_bits = self._code_bits(counted.tolist())
        parts, layers = replace(self.parts, code_bits=code_bits), self._layers
        budgets = (
            replace(b, tables=tuple(part_costs(parts, table, layers) for table in b.tables))
            for b in self.problem.budgets
        )
        return Problem(
            replace(self.problem.loss, layers=parts.row_names, values=self.losses, scores={}),
            Constraints(tuple(budgets), self.ties),
            mask=np.repeat(open_to, parts.counts, axis=0),
            parts=parts,
        )

    def used(self, solution: Solution) -> Mask:
        """``[L, B]`` the formats that a layer's parts have in an answer."""
        assert solution.columns is not None
        found = np.zeros_like(self.open_to)
        for row, name in enumerate(self.parts.layers):
            found[row, solution.columns[self.parts.rows_of(name)]] = True
        return found

    @property
    def _layers(self) -> tuple[Layer, ...]:
        return tuple(self.prepared.pricing.layers)

    def _code_bits(self, num_widths: Sequence[tuple[int, int]]) -> int:
        """If each layer uses so many, and so many with codes; a target stores a byte a channel."""
        divided = self.parts.divided
        if self.prepared.task.target is not None:
            return 8 * sum(len(parts.units) for parts in divided.values())
        total = 0
        for layer, (widths, with_codes) in zip(self._layers, num_widths, strict=True):
            if layer.name in divided:
                total += divided[layer.name].num_codes * (widths - 1).bit_length()
                total += self._scale_bits(layer, with_codes)
        return total

    def _scale_bits(self, layer: Layer, widths: int) -> int:
        """What scales and zero points take beside those of whole layers."""
        weight = self.precisions[layer.name].weight
        if self.split.axis == OUTPUTS:
            return 0
        if weight.group_size is None:
            return tied_bits(widths, layer.num_channels)
        # Zero points are as wide as codes, also of a last group that is short.
        return 0 if weight.symmetric else layer.num_channels * MOST_BITS


def _block(
    layer: Layer, split: Split, precisions: Mapping[str, Precision], heads: Heads | None
) -> int:
    """Consecutive channels, or inputs, that are a part."""
    if heads is not None:
        return heads.block(layer.name)
    if split.axis == OUTPUTS:
        return split.block
    return split.inputs_per_part(layer.weight_shape, precisions[layer.name].weight.group_size)


def _divided(layer: Layer, split: Split, units: Columns, block: int) -> LayerParts:
    if split.axis == OUTPUTS:
        return OutputParts(units, block)
    return InputParts(split.axis, layer.num_weights // layer.num_channels, block, len(units))
