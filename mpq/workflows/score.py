"""The user's own judge: a number that a function says of a whole network."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from time import perf_counter
from typing import Any, Self, final

import numpy as np
import torch
from torch import nn

from mpq._support.told import told
from mpq.backends.hugging_face import require
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.network.randomness import random_state_kept
from mpq.problem.assignment import Assignment
from mpq.quantization.fingerprint import checksum
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.workflows.asked_score import ORIGINAL_NETWORK, asked_number, in_precisions
from mpq.workflows.built_in_scores import BUILT_IN, Scoring
from mpq.workflows.kept_scores import KeptScores, Said


@final
@dataclass(frozen=True, eq=False)
class Score:
    """What is made of a network, and which way is better.

    Args:
        name: One of ``BUILT_IN``, or what names a function of the user's.
        function: Called with the network, the examples that it is measured on, and the original;
            returns a number.
        higher_is_better: As of an accuracy; not as of a perplexity.
        call_s: Seconds of a call, as the user says; ``None``: a plan clocks one.
    """

    name: str
    function: Scoring
    higher_is_better: bool
    call_s: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"a score is a function; got a {type(self.function).__name__}")
        if self.call_s is not None and not 0 < self.call_s < float("inf"):
            raise InputError(f"a call of a score takes a positive time; got {self.call_s} s")

    @classmethod
    def of(
        cls,
        function: Callable[[nn.Module], Any],
        higher_is_better: bool,
        name: str = "",
        call_s: float | None = None,
    ) -> Self:
        """From a function of the user's, which is called with the quantized network alone.

        Args:
            function: Returns a number, of whatever examples it likes. The network is in evaluation
                mode, and stays as it is.
            higher_is_better: Of two numbers.
            name: For people; default: the function's own.
            call_s: See the class.
        """
        if not callable(function):
            raise InputError(f"a score is a function; got a {type(function).__name__}")
        own = f"{function.__module__}:{getattr(function, '__qualname__', '')}"
        return cls(name or own, _OfNetwork(function), higher_is_better, call_s)

    @classmethod
    def built_in(cls, name: str, call_s: float | None = None) -> Self:
        """By its name.

        Raises:
            InputError: If there is none of that name.
            MissingDependencyError: If it needs a package that is not there.
        """
        found = BUILT_IN.get(name)
        if found is None:
            known = ", ".join(BUILT_IN)
            raise InputError(
                f"there is no score {name!r}: take one of {known}, or a function of yours, as "
                "package.module:function, and say which way is better"
            )
        if found.needs:
            require(found.needs, "scores")
        return cls(name, found.function, found.higher_is_better, call_s)

    def drop(self, original: float, found: float) -> float:
        """How much worse a score is than the original's; below 0: better."""
        return original - found if self.higher_is_better else found - original

    @cached_property
    def key(self) -> str:
        """What tells scores apart in a cache: the name, and all that the function was made with.

        Its code and that of its file, what it calls there, defaults, what it closes over, the
        object of a method, the arguments of a partial. Not looked at are values of global names,
        and what it calls of other files. What cannot be read is something else every time.
        """
        function = self.function.function if isinstance(self.function, _OfNetwork) else None
        return f"{self.name} {'' if function is None else told(function, checksum)}"

    @property
    def reads_examples(self) -> bool:
        """Whether it is told examples: a function of the user's looks at some of its own."""
        return not isinstance(self.function, _OfNetwork)

    @property
    def drop_key(self) -> str:
        """What tells drops apart: the score, and which way is better."""
        return f"{self.key} {'higher' if self.higher_is_better else 'lower'}"


@final
@dataclass(frozen=True)
class _OfNetwork:
    """A function of the network alone, called as built-in scores are."""

    function: Callable[[nn.Module], Any]

    def __call__(self, module: nn.Module, _: Calibration, __: nn.Module) -> Any:
        return self.function(module)


@final
@dataclass(frozen=True, eq=False)
class Judge:
    """A score, and what it compares networks on and with.

    Args:
        score: What is made of a network.
        data: The examples.
        model: The original.
        kept: Where what it said is kept on disk; ``None``: nowhere.
        known_original: What it says of the original, where that is known.
    """

    score: Score
    data: Calibration
    model: nn.Module
    kept: KeptScores | None = None
    known_original: float | None = None
    _known: dict[frozenset[tuple[str, Precision]], tuple[Quantizer, float]] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def original(self) -> float:
        """What it says of the original."""
        return self._original.score if self.known_original is None else self.known_original

    @property
    def call_s(self) -> float:
        """Seconds of a call: as the user says, or as that about the original took."""
        return self._original.seconds if self.score.call_s is None else self.score.call_s

    @cached_property
    def _original(self) -> Said:
        ask = partial(self._said, self.model, ORIGINAL_NETWORK)
        return ask() if self.kept is None else self.kept.original(ask)

    def of_quantized(
        self, network: Network, quantizer: Quantizer, precisions: Mapping[str, Precision]
    ) -> float:
        """What it says of a network with these layers in these precisions; each is asked once.

        Raises:
            ScoreError: As ``of``.
            OutputError: If what is kept cannot be read.
        """

        def ask() -> Said:
            with quantized(network, precisions, quantizer):
                return self._said(network.module, in_precisions(precisions))

        chosen = frozenset(precisions.items())
        by, found = self._known.get(chosen, (None, 0.0))
        # Another quantizer may have other codes and ranges.
        if by is not quantizer:
            kept = self.kept
            said = ask() if kept is None else kept.quantized(precisions, quantizer, ask)
            found = said.score
            self._known[chosen] = quantizer, found
        return found

    def known(self, quantizer: Quantizer, precisions: Mapping[str, Precision]) -> float | None:
        """What it said of a network with these layers in these precisions, if it was asked.

        Raises:
            OutputError: If what is kept cannot be read.
        """
        by, found = self._known.get(frozenset(precisions.items()), (None, 0.0))
        if by is quantizer:
            return found
        said = None if self.kept is None else self.kept.read(precisions, quantizer)
        return None if said is None else said.score

    def took(self, quantizer: Quantizer, precisions: Mapping[str, Precision], found: float) -> None:
        """Keeps what a worker was told of a network, which says nothing of how long it took."""
        self._known[frozenset(precisions.items())] = quantizer, found
        if self.kept is not None:
            self.kept.write(precisions, quantizer, Said(found, 0.0))

    @property
    def sent(self) -> "Judge":
        """As a worker gets it: what is known of assignments stays here, and is kept here."""
        return replace(self, kept=None, known_original=self.original)

    def of_made(self, module: nn.Module, assignment: Assignment) -> float:
        """What it says of a network that was made of an assignment, biases and tuning included."""
        ask = partial(self._said, module, "the answer as it is shipped")
        return (ask() if self.kept is None else self.kept.made(assignment, ask)).score

    def _said(self, module: nn.Module, what: str) -> Said:
        start = perf_counter()
        return Said(self.of(module, what), perf_counter() - start)

    def of(self, module: nn.Module, what: str = "the network") -> float:
        """What it says of a network, which is as it was afterwards.

        Whether the numbers of parameters are what they were is looked at in every call of a
        function of the user's: by two checksums, a pass over all parameters each.

        Args:
            module: The network.
            what: It, in words, for errors.

        Raises:
            ScoreError: If the function fails, returns no finite number, or changes the network.
            MpqError: If a built-in score cannot be made of these examples.
        """
        score, is_own = self.score, not self.score.reads_examples
        with torch.no_grad(), random_state_kept():
            _begin_alike()
            call = partial(score.function, module, self.data, self.model)
            return asked_number(call, module, score.name, what, is_own)

    def drop(self, found: float) -> float:
        """How much worse a score is than the original's."""
        return self.score.drop(self.original, found)

    def drop_of_quantized(
        self, network: Network, quantizer: Quantizer, precisions: Mapping[str, Precision]
    ) -> float:
        """How much worse that of a network with these layers in these precisions is."""
        return self.drop(self.of_quantized(network, quantizer, precisions))


def _begin_alike() -> None:
    """A score that draws, draws the same for every network."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
