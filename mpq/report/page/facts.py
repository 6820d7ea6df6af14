"""What the page of a result says, as numbers and names: its tables and pictures are all of this."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from mpq._support.phases import Spent
from mpq.problem.metadata import UsedBudget
from mpq.report.measurement import Measurement
from mpq.report.page.layers import LayerFacts, Move, Pair

BATCH_SIZE: Final = "batch size that was priced"
"""Of what made a result: a row that runs are compared by."""


@final
@dataclass(frozen=True)
class Resource:
    """What networks are compared by besides the loss.

    Args:
        name: Such as ``weight_bytes``.
        unit: Of its amounts.
        is_shown: Whether every layer's share of it is shown; the others are axes only.
        half_width: Of the answer's 95 % interval, where it was measured; ``None``: not known.
    """

    name: str
    unit: str
    is_shown: bool = False
    half_width: float | None = None


@final
@dataclass(frozen=True)
class NetworkFacts:
    """One network that was measured: the original, the answer, a uniform precision.

    Args:
        label: For people.
        kind: ``original``, ``answer`` or ``uniform``.
        predicted: Loss by the estimator; ``None``: not asked.
        measured: On held-out examples.
        costs: Resource to amount; ``None`` where the device cannot run it.
        is_within: Whether it meets every budget, whatever layers may take; ``None``: not known.
        keeps_rules: Whether all layers may take its precisions.
    """

    label: str
    kind: str
    predicted: float | None
    measured: Measurement
    costs: Mapping[str, float | None]
    is_within: bool | None
    keeps_rules: bool = True


@final
@dataclass(frozen=True)
class PointFacts:
    """One assignment that can be taken: on the frontier, the answer, or a uniform precision.

    Args:
        label: For people.
        kind: ``frontier``, ``answer`` or ``uniform``.
        loss: As ``Facts.points_name`` says.
        costs: Resource to amount; ``None`` where the device cannot run it.
        choices: ``[L]`` place in each layer's ``choices``.
        measured: On held-out examples; ``None``: not measured.
        status: How the solver ended, in words; empty: nobody solved for it.
        is_within: Whether it meets the other budgets, in precisions that layers may take.
        pairs: What pairs of layers add most, or cancel; none where it is not known.
        command: What finds it again; empty: nothing does.
        metadata: Of its assignment.json.
        why_no_command: Why nothing does.
        why_no_file: Why the page cannot give its assignment.json; empty: it can.
        keeps_rules: Whether all layers may take its precisions.
        file_note: In what that file is another network than this; empty: in nothing.
    """

    label: str
    kind: str
    loss: float
    costs: Mapping[str, float | None]
    choices: tuple[int, ...]
    measured: Measurement | None
    status: str
    is_within: bool
    pairs: tuple[Pair, ...]
    command: str
    metadata: Mapping[str, Any]
    why_no_command: str = ""
    why_no_file: str = ""
    keeps_rules: bool = True
    file_note: str = ""


@final
@dataclass(frozen=True)
class Checked:
    """One number that was predicted and measured.

    Args:
        what: The network, or the layer at its precision.
        kind: ``network`` or ``cell``: one layer, the others as they are.
        predicted: By the estimator.
        measured: On held-out examples, of a cell on calibration examples.
        standard_error: Of the measurement; ``None``: not known.
        note: What was found, where that is notable.
    """

    what: str
    kind: str
    predicted: float
    measured: float
    standard_error: float | None = None
    note: str = ""


@final
@dataclass(frozen=True)
class LossFacts:
    """How small a solver made what it was to make small.

    Args:
        name: What that is, for people: predicted, or measured on calibration examples.
        unit: Of it.
        value: How small.
    """

    name: str
    unit: str
    value: float


@final
@dataclass(frozen=True)
class DeviceFacts:
    """The hardware profile, as far as the result knows it.

    Args:
        name: Of the profile.
        title: What it is.
        basis: Whether its costs are measured or estimated.
        notes: What is left out.
        numbers: Name with unit, value, source.
    """

    name: str
    title: str
    basis: str
    notes: str
    numbers: tuple[tuple[str, float, str], ...]


@final
@dataclass(frozen=True)
class Facts:
    """A result for people, in the order of what they ask.

    Args:
        title: Of the page.
        run_id: Mark of the run's files.
        sentences: The answer as a colleague would say it.
        loss_unit: Of all predicted losses: of layers, pairs, moves, networks.
        solver_loss: What the solver made small, which need not be a predicted loss.
        metric: What was measured on held-out examples.
        metric_unit: Its unit.
        score: Name of the user's own score; empty: there is none.
        higher_score_is_better: Which way; ``None``: not known.
        budgets: Every limit, and what the answer uses of it.
        resources: What networks cost.
        networks: What was measured: original, answer, uniform precisions.
        axis: The resource that the frontier is over.
        points: Frontier, then the answer and the uniform precisions.
        points_name: What their losses are, for people: predicted, or measured by the solver.
        points_unit: Of these.
        hypervolume: Share of the rectangle between the frontier's ends; ``None``: of two points.
        frontier_notes: What is to be known of the frontier.
        precisions: ``[B]`` spellings of the candidates.
        layers: ``[L]`` in the network's order.
        moves: What one layer more, or one less, costs at the answer.
        budget_prices: How far each budget is used, and what the best single move makes of more.
        price: What a little more of the frontier's resource buys there, in a sentence; empty: it
            is not known.
        why_no_pairs: In a sentence, for points that have none.
        why_no_moves: The same for moves.
        checks: Predicted against measured.
        order: Spearman's rank correlation over the measured networks; ``None``: too few.
        trust: What was found of the prediction, in sentences.
        cost_notes: What is used of every budget, and how well costs are known, in sentences.
        warnings: What is not covered, and what did not help, in sentences.
        device: ``None`` without one.
        made: What made it: a name, a value.
        phases: What it spent its time on, in order; none where it was not measured.
        command: What repeats the search; empty: it was none, or it is not known.
        call: The same of a search from Python, with its task.
        assignment: What all assignment.json of the points share, and formats by precision.
    """

    title: str
    run_id: str
    sentences: tuple[str, ...]
    loss_unit: str
    solver_loss: LossFacts
    metric: str
    metric_unit: str
    score: str
    higher_score_is_better: bool | None
    budgets: tuple[UsedBudget, ...]
    resources: tuple[Resource, ...]
    networks: tuple[NetworkFacts, ...]
    axis: str
    points: tuple[PointFacts, ...]
    points_name: str
    points_unit: str
    hypervolume: float | None
    frontier_notes: tuple[str, ...]
    precisions: tuple[str, ...]
    layers: tuple[LayerFacts, ...]
    moves: tuple[Move, ...]
    checks: tuple[Checked, ...]
    order: float | None
    trust: tuple[str, ...]
    cost_notes: tuple[str, ...]
    warnings: tuple[str, ...]
    device: DeviceFacts | None
    made: tuple[tuple[str, str], ...]
    phases: tuple[Spent, ...] = ()
    command: str = ""
    call: str = ""
    price: str = ""
    budget_prices: tuple[str, ...] = ()
    why_no_pairs: str = ""
    why_no_moves: str = ""
    assignment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> int:
        """Place of the answer among the points; of the first one where there is none."""
        found = (place for place, point in enumerate(self.points) if point.kind == "answer")
        return next(found, 0)
