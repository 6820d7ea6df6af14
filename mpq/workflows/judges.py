"""Who is asked for scores in a search, on which examples: each network once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from torch import nn

from mpq._support.cache import Cache
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity.estimation import Estimation, ScoreDrop
from mpq.workflows.kept_scores import KeptScores
from mpq.workflows.score import Judge, Score


@final
@dataclass(frozen=True, eq=False)
class Judges:
    """The task's own score, and those that an estimator asks by name.

    Args:
        score: The task's own; ``None``: it has none.
        model: The original.
        network: Own copy of it, whose layers are quantized.
        quantizer: Makes that of weights to nearest; asked where something is kept.
        calibration: Examples that estimators and solvers see.
        held_out: Examples that answers are measured on.
        cache: Where what they said is kept on disk; ``None``: nowhere.
    """

    score: Score | None
    model: nn.Module
    network: Network
    quantizer: Callable[[], Quantizer]
    calibration: Calibration
    held_out: Calibration
    cache: Cache | None = None

    @cached_property
    def on_calibration(self) -> Judge | None:
        """Of what estimators and solvers try."""
        return None if self.score is None else self._judge(self.score, self.calibration)

    @cached_property
    def on_held_out(self) -> Judge | None:
        """Of answers."""
        # A function that looks at examples of its own says the same of both: it is asked once.
        if self.score is None or not self.score.reads_examples:
            return self.on_calibration
        return self._judge(self.score, self.held_out)

    def asked(self, on: Estimation) -> Estimation:
        """A question to an estimator that may ask scores."""
        judge = self.on_calibration
        return replace(
            on,
            score_drop=judge and judge.drop_of_quantized,
            score_key="" if judge is None else judge.score.drop_key,
            named_drop=self._named_drop,
        )

    def asked_alone(self, on: Estimation) -> Estimation:
        """The same question to one that has to know nothing of what others asked, but the original.

        Its time is then its own.
        """
        judge, own = self.on_calibration, None
        if judge is not None:
            own = judge.sent.drop_of_quantized
        return replace(replace(self, cache=None).asked(on), score_drop=own)

    def _named_drop(self, name: str) -> ScoreDrop:
        return self._judge(Score.built_in(name), self.calibration).drop_of_quantized

    def _judge(self, score: Score, data: Calibration) -> Judge:
        if self.cache is None:
            return Judge(score, data, self.model)
        asked = self.network, self.quantizer(), data, self.model
        return Judge(score, data, self.model, KeptScores(self.cache, score.key, *asked))
