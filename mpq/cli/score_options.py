"""Options of the user's own judge of whole networks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpq.workflows.score import Score


OwnScore = Annotated[
    str | None,
    typer.Option(
        "--score",
        help="Judge of whole networks: accuracy, top-5, perplexity, miou, sqnr, psnr, ssim, map, "
        "or a function that takes the quantized network and returns a number; named as --model.",
    ),
]
ScoreBetter = Annotated[
    str | None,
    typer.Option("--score-better", help="Which of two numbers of your function: higher, lower."),
]
ScoreCost = Annotated[
    str | None,
    typer.Option("--score-cost", help="What a call of --score takes, such as 30s, for the plan."),
]


@dataclass(frozen=True, eq=False)
class ScoreOptions:
    """The user's own judge of whole networks."""

    score: OwnScore = None
    score_better: ScoreBetter = None
    score_cost: ScoreCost = None

    def built(self) -> "Score | None":
        """The score that the options describe, its function loaded; ``None``: there is none.

        Raises:
            InputError: If there is none of that name, or which way is better is not known.
        """
        from mpq.errors import InputError

        if self.score is None:
            if self.score_better is not None or self.score_cost is not None:
                raise InputError("--score-better and --score-cost go with --score")
            return None
        from mpq._support.durations import seconds_of
        from mpq.cli.loading import load_callable
        from mpq.workflows.score import Score

        call_s = None if self.score_cost is None else seconds_of(self.score_cost)
        if ":" not in self.score:
            if self.score_better is not None:
                raise InputError(f"--score {self.score} says by itself which way is better")
            return Score.built_in(self.score, call_s)
        if self.score_better not in ("higher", "lower"):
            raise InputError(
                f"--score-better says which of two numbers of {self.score} is better: higher or "
                f"lower; got {self.score_better or 'nothing'}"
            )
        is_higher = self.score_better == "higher"
        return Score.of(load_callable(self.score), is_higher, self.score, call_s)
