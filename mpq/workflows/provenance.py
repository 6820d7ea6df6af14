"""What made a result: names, versions, and how the search went."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, final

from mpq.hardware_profiles.profile import Profile
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.reach import Reach
from mpq.problem.metadata import UsedRecipe
from mpq.workflows.asked import Asked
from mpq.workflows.bias_record import BiasCorrection
from mpq.workflows.recalibration import Recalibration
from mpq.workflows.refine import Refinement
from mpq.workflows.sequential_rounding import SequentialRounding
from mpq.workflows.step_record import StepRecord
from mpq.workflows.subject import Subject
from mpq.workflows.tuning_record import TuningRecord


@final
@dataclass(frozen=True)
class UsedDevice:
    """The hardware profile of a search, as far as its result speaks of it.

    Args:
        name: Name of the hardware profile, as ``mpq devices`` lists it.
        resources: What it prices, such as ``latency``.
        basis: Whether these numbers are measured or estimated, in words.
        title: What it is, for people.
        notes: What is left out of its costs.
        numbers: Every number that costs are computed from, by its name with unit; of a profile of
            one network, which has one for every layer, those of the whole.
    """

    name: str
    resources: tuple[str, ...] = ()
    basis: str = ""
    title: str = ""
    notes: str = ""
    numbers: Mapping[str, Sourced] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """As far as a result speaks of it."""
        numbers = dict(profile.numbers())
        return cls(
            profile.name,
            tuple(profile.resources),
            profile.basis,
            profile.title,
            profile.notes,
            numbers,
        )


@final
@dataclass(frozen=True)
class Provenance:
    """Who made a result, with what.

    Args:
        estimator: Name of the sensitivity estimator.
        solver: As it is spelled for ``SOLVERS.build``; a solver that is not registered by its name.
        seed: Seed of estimator and solver.
        device: The hardware profile; ``None`` without one.
        is_loss_measured: Whether the solver measured losses instead of predicting them.
        refinements: Rounds in which the estimate was made anew at the incumbent.
        reach: Layers that a part of the examples reached, or none: these are left as they are.
        unscored: Paths of what the network returns besides what its metric looks at.
        higher_score_is_better: Of the task's own score; ``None``: it has none, or an older mpq
            searched.
        allow_randomness: Where the network's generators started in every pass; ``None``: nothing
            was drawn.
        is_mixing: Whether rows of a batch change each other's outputs, so that every batch is one
            example: what is told of an example is told of a batch.
        unchecked_rows: Why it could not be found out whether rows of a batch change each other's
            outputs; empty: it was.
        target: Where it is to run, as ``mpq export --to`` takes it; ``None``: anywhere.
        streamed: Why weights were read from their files as they were needed, a sentence; empty:
            they were in memory.
        unshipped: Layers that stay as they came because the target cannot hold them, and why.
        rounding: How weights were rounded, as ``ROUNDINGS.build`` takes it.
        rounded_to_nearest: Layers whose weights were rounded to nearest all the same, and why.
        rounding_unhelped: Precisions at which weights were rounded to nearest, as unseen examples
            did not say that ``auto``'s rounding helps.
        rounding_unguided: Layers that were rounded by what they read alone, without regard to the
            loss, and why.
        sequential_rounding: What rounding the answer again, layer by layer, gave; ``None``: it was
            not asked for.
        ranges_unhelped: Formats of inputs, such as ``a8``, whose ranges are of ``mse``, as unseen
            examples did not say that ``loss`` helps, and why.
        recalibration: What choosing the answer's ranges again gave; ``None``: it was not asked for.
        transforms: Transformations that were asked for, as ``TRANSFORMS.build`` takes them.
        untransformed: Transformation and weight to why the graph does not allow it there.
        transforms_unhelped: Transformation to why it is not used.
        bias_correction: What correcting the answer's biases gave; ``None``: it was not asked for.
        tuning: What tuning the answer gave; ``None``: it was not asked for.
        steps: Clusters of a diffusion's steps, with their examples; ``None``: one range for all.
        operands_left: What operations between layers read and stays as it came, and why; ``None``:
            inputs of layers alone were rounded.
        recipe: The published system that it was found by; ``None``: by none.
        mpq_version: Version of mpq that made it; empty where it is not known.
        torch_version: Version of torch that it was made with; empty where it is not known.
        asked: Limits and objective; ``None``: a record of an older mpq, which does not say them.
        subject: The network and its examples; ``None``: a record of an older mpq.
        activation_range: How ranges of inputs were chosen, as ``RANGE_METHODS.build`` takes it;
            empty: a record of an older mpq.
    """

    estimator: str
    solver: str
    seed: int
    device: UsedDevice | None = None
    is_loss_measured: bool = False
    refinements: tuple[Refinement, ...] = ()
    reach: Reach = field(default_factory=Reach)
    unscored: tuple[str, ...] = ()
    higher_score_is_better: bool | None = None
    allow_randomness: int | None = None
    is_mixing: bool = False
    unchecked_rows: str = ""
    target: str | None = None
    streamed: str = ""
    unshipped: Mapping[str, str] = field(default_factory=dict)
    rounding: str = "nearest"
    rounded_to_nearest: Mapping[str, str] = field(default_factory=dict)
    rounding_unhelped: tuple[str, ...] = ()
    rounding_unguided: Mapping[str, str] = field(default_factory=dict)
    sequential_rounding: SequentialRounding | None = None
    ranges_unhelped: Mapping[str, str] = field(default_factory=dict)
    recalibration: Recalibration | None = None
    transforms: tuple[str, ...] = ()
    untransformed: Mapping[str, str] = field(default_factory=dict)
    transforms_unhelped: Mapping[str, str] = field(default_factory=dict)
    bias_correction: BiasCorrection | None = None
    tuning: TuningRecord | None = None
    steps: StepRecord | None = None
    operands_left: Mapping[str, str] | None = None
    recipe: UsedRecipe | None = None
    mpq_version: str = ""
    torch_version: str = ""
    asked: Asked | None = None
    subject: Subject | None = None
    activation_range: str = ""
