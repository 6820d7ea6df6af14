"""Selection in steps: many children on few examples, and fewer of them on more."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Self, final

import numpy as np

from mpq.errors import InputError
from mpq.solvers._base import Losses, MeasuredLosses
from mpq.solvers.black_box._base import asked_losses
from mpq.solvers.black_box.population import Assignments

_SEEDS = 2**31
"""Which examples a step takes is drawn anew every time."""


@final
@dataclass(frozen=True)
class Selection:
    """How many assignments are compared on which share of the examples, before the last step.

    Args:
        steps: How many, and on which share: fewer on more from step to step; none: every child is
            measured on all examples at once.

    Raises:
        InputError: If a step has no assignment, not fewer than the step before, or a share that is
            not more than before or not between 0 and 1.
    """

    steps: tuple[tuple[int, Fraction], ...]

    def __post_init__(self) -> None:
        counts = [*(count for count, _ in self.steps), 0]
        shares = [Fraction(0), *(share for _, share in self.steps), Fraction(1)]
        is_fewer = all(count > later for count, later in pairwise(counts))
        if not is_fewer or not all(share < later for share, later in pairwise(shares)):
            raise InputError(
                "a selection compares fewer assignments on more examples from step to step, such "
                f"as 128@1/64;16@1/8; got {self}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``128@1/64;16@1/8``: 128 assignments on a 64th of the examples, 16 on an eighth.

        Raises:
            InputError: If it is none.
        """
        try:
            written = [step.split("@") for step in filter(None, text.split(";"))]
            steps = tuple((int(count), Fraction(share)) for count, share in written)
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(
                "a selection is steps of a number of assignments and a share of the examples, such "
                f"as 128@1/64;16@1/8; got {text!r}"
            ) from error
        return cls(steps)

    def __str__(self) -> str:
        return ";".join(f"{count}@{share}" for count, share in self.steps)

    @property
    def num_children(self) -> int:
        """How many the first step takes; 0: there is none."""
        return self.steps[0][0] if self.steps else 0

    @property
    def passes(self) -> float:
        """What one selection takes, in measurements on all examples."""
        return float(sum(count * share for count, share in self.steps))

    def best_first(
        self,
        name: str,
        objective: MeasuredLosses,
        children: Assignments,
        layers: Callable[[Assignments], Assignments],
        rng: np.random.Generator,
    ) -> Assignments:
        """Those of ``[P, G]`` that the last step compared, the least loss first.

        Args:
            name: Of the solver that asks, for messages.
            objective: Which can measure on a share of its examples.
            children: As many as the first step takes, or fewer.
            layers: A column per layer ``[P, L]``, from one per group.
            rng: Draws the examples of every step.
        """
        assert objective.on_share is not None
        for count, share in self.steps:
            children = children[:count]
            losses = objective.on_share(float(share), int(rng.integers(_SEEDS)))
            order = asked_losses(name, losses, layers(children)).argsort(kind="stable")
            children = children[order]
        return children


def shareable(name: str, objective: Losses | None) -> MeasuredLosses:
    """An objective that can be measured on a share of its examples.

    Raises:
        InputError: If it cannot.
    """
    if isinstance(objective, MeasuredLosses) and objective.on_share is not None:
        return objective
    raise InputError(
        f"{name}: a selection in steps measures on shares of the examples, which these losses "
        "cannot (of a network that draws at random they depend on all examples before): leave "
        "selection out, and every child is measured on all of them"
    )


def check_selection(name: str, text: str, is_measured: bool, batch_size: int) -> None:
    """Refuses a selection that its solver cannot make.

    Raises:
        InputError: If it is none, its last step leaves fewer than are measured at once, or nothing
            is measured.
    """
    steps = Selection.parse(text).steps
    if steps and not is_measured:
        raise InputError(f"{name}: a selection in steps needs is_measured=true; got {text!r}")
    if steps and steps[-1][0] < batch_size:
        raise InputError(
            f"{name}: the last step of {text!r} leaves fewer than batch_size={batch_size}, which "
            "are measured on all examples"
        )
