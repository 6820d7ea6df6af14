"""Options of a diffusion network: where its step is, and what is made of it."""

from dataclasses import dataclass
from typing import Annotated

import typer

from mpq.quantization.steps import Steps

Step = Annotated[
    str | None,
    typer.Option(
        "--step",
        help="Argument of a diffusion network's forward that holds the step of every example: its "
        "name, or its place, 0 for the first.",
    ),
]
StepClusters = Annotated[
    int,
    typer.Option("--step-clusters", help="Clusters of steps, for which inputs have own ranges."),
]
StepTrial = Annotated[
    bool,
    typer.Option(
        "--step-trial/--no-step-trial",
        help="Own ranges only in formats in which unseen examples lose less by it.",
    ),
]
StepWithin = Annotated[
    str | None,
    typer.Option(
        "--step-within",
        metavar="FIRST,LAST",
        help="Steps that the network will run at, such as 0,999; examples that leave out much of "
        "them are warned of.",
    ),
]


@dataclass(frozen=True, eq=False)
class StepOptions:
    """Where a diffusion network is told its step, and how many clusters steps are put into."""

    step: Step = None
    step_clusters: StepClusters = Steps.clusters
    step_within: StepWithin = None
    step_trial: StepTrial = Steps.trial

    def steps(self) -> Steps | None:
        """The steps that the options describe; ``None``: the network has none.

        Raises:
            InputError: If clusters or a range are given without an argument.
        """
        from mpq.errors import InputError

        if self.step is None:
            others = (self.step_clusters, self.step_within, self.step_trial)
            if others != (Steps.clusters, None, Steps.trial):
                raise InputError(
                    "--step-clusters, --step-within and --no-step-trial go with --step, which "
                    "names the argument that holds steps, such as --step timestep"
                )
            return None
        within = None if self.step_within is None else tuple(self.step_within.split(","))
        place = int(self.step) if self.step.isdecimal() else self.step
        return Steps(place, self.step_clusters, within, self.step_trial)  # type: ignore[arg-type]
