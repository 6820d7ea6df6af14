"""What is told of a search's result, by its page, its sentences and its files."""

from collections.abc import Mapping
from typing import Protocol

from mpq._support.arrays import Array, Columns
from mpq.network.coverage import Coverage
from mpq.network.layer import Layer
from mpq.problem.assignment import Assignment
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.range_method import ActivationRange
from mpq.report.frontier import FrontierPoint
from mpq.report.measurement import ComparisonRow, Measurement
from mpq.report.page.made import Made
from mpq.report.safeguard import Safeguard
from mpq.sensitivity import SpotCheck
from mpq.sensitivity.step_shares import StepShares
from mpq.workflows.provenance import Provenance


class Searched(Protocol):
    """A ``SearchResult``, which has every word of this explained, as those read it who tell it.

    A result writes its own page, so that what makes the page cannot know the result's class.
    """

    @property
    def problem(self) -> Problem:
        """That was solved."""

    @property
    def solution(self) -> Solution:
        """What was found."""

    @property
    def assignment(self) -> Assignment:
        """What a backend reads."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """``L`` layers."""

    @property
    def tables(self) -> tuple[CostTable, ...]:
        """Every resource that is a sum over layers."""

    @property
    def half_widths(self) -> tuple[CostTable, ...]:
        """95 % intervals of resources."""

    @property
    def comparisons(self) -> tuple[ComparisonRow, ...]:
        """Original, answer, uniform precisions."""

    @property
    def provenance(self) -> Provenance:
        """What made it."""

    @property
    def trials(self) -> tuple[tuple[Columns, float], ...]:
        """What a search over loss and costs found on its way."""

    @property
    def safeguard(self) -> Safeguard | None:
        """The answer beside others."""

    @property
    def spot_check(self) -> SpotCheck | None:
        """What measuring a few cells said."""

    @property
    def coverage(self) -> Coverage | None:
        """What of the model lies in layers."""

    @property
    def ranges(self) -> Mapping[str, Mapping[str, ActivationRange]]:
        """Calibrated ranges."""

    @property
    def steps(self) -> StepShares | None:
        """Which steps prices come from."""

    @property
    def made(self) -> Made:
        """How it was called, and what it took."""

    @property
    def columns(self) -> Columns:
        """``[L]`` the chosen column of every layer."""

    @property
    def step_losses(self) -> Array | None:
        """``[L, B, T]`` by cluster of steps."""

    @property
    def shown_tables(self) -> tuple[CostTable, ...]:
        """Those of which every layer's share is shown."""

    @property
    def loss_name(self) -> str:
        """What the solution's loss is."""

    @property
    def loss_unit(self) -> str:
        """What it is in."""

    @property
    def measured(self) -> Measurement:
        """The answer on held-out examples."""

    @property
    def run_id(self) -> str:
        """Mark of its files."""

    def cost_table(self, resource: str) -> CostTable:
        """Of any resource over the problem's rows."""

    def beside(self, resource: str) -> tuple[FrontierPoint, ...]:
        """The answer and the uniform precisions, as points."""
