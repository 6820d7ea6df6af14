"""A published system as a value: what it estimates, chooses and rounds with, and by what source."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from typing import Final, TypeAlias, final

from mpq.errors import InputError

NOT_STATED: Final = "not stated"
"""Source of a choice that a paper, as far as we know it, leaves open: what is taken is ours."""

Allowed: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""Globs of layers, and what these may take."""
Value: TypeAlias = str | bool | int | tuple[str, ...] | Allowed | None
"""Of a setting."""
OPTIONS: Final = {
    "sensitivity": "--sensitivity",
    "solver": "--solver",
    "candidates": "--precisions",
    "calibration": "--data",
    "weight_range": "--weight-range",
    "activation_range": "--activation-range",
    "rounding": "--rounding",
    "transforms": "--transform",
    "ends": "--ends",
    "find_ties": "--find-ties",
    "tie": "--tie",
    "tie_blocks": "--tie-blocks",
    "tie_inner": "--tie-inner",
    "bias_correction": "--bias-correction",
    "tune": "--tune",
    "split": "--split",
    "safeguard": "--safeguard",
    "allow": "--allow",
    "kv_cache": "--kv-cache",
    "kv_first": "--kv-first",
    "kv_before_rotation": "--kv-before-rotation",
}
"""Setting to the option of ``mpq search`` that says the same."""
NEVER: Final[Mapping[str, bool | int | str]] = {
    "refine": 0,
    "sequential_rounding": False,
    "recalibrate": False,
    "activations": "inputs",
}
"""What no recipe does; who asks for it besides departs from the paper."""
CACHE_SETTINGS: Final = ("kv_cache", "kv_first", "kv_before_rotation")
"""Settings of recipes of a key-value cache."""


@final
@dataclass(frozen=True)
class Paper:
    """What a recipe is of.

    Args:
        authors: Such as ``Dong et al.``
        year: Of publication.
        title: In full.
        arxiv: Number, such as ``1911.03852``.
    """

    authors: str
    year: int
    title: str
    arxiv: str

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}), {self.title}, arXiv:{self.arxiv}"


@final
@dataclass(frozen=True)
class Choice:
    """One choice that a search needs, and where it is from.

    Args:
        of: What is chosen, such as ``candidates``.
        taken: What is taken, in words.
        source: Where the paper says so, such as ``the paper, on the objective``; ``NOT_STATED``: it
            is ours.
    """

    of: str
    taken: str
    source: str = NOT_STATED


@final
@dataclass(frozen=True)
class Recipe:
    """A published system, by its name: nothing but values, which ``mpq.search`` follows.

    Args:
        name: As ``--recipe`` takes it.
        version: Whole number from 1 on; another one makes other choices.
        summary: What it uses, in a sentence.
        paper: Where it is from.
        formula: What is made small, in one line.
        sensitivity: Estimator with options, for ``ESTIMATORS.build``.
        solver: Solver with options, for ``SOLVERS.build``.
        candidates: What every layer may take.
        constraint: Which limits the paper sets, in words.
        choices: Each with its source.
        departures: What is done otherwise than in the paper, a sentence each.
        weight_range: How ranges of weights are chosen, for ``RANGE_METHODS.build``.
        activation_range: How ranges of inputs are chosen.
        rounding: How weights become codes, for ``ROUNDINGS.build``.
        source: Of calibration examples that need no data, for ``DATA_SOURCES.build``, without
            their shape; empty: the user's examples.
        transforms: What the network goes through before, for ``TRANSFORMS.build``.
        ends: Precision of the first and the last layer; ``None``: they are chosen as all are.
        find_ties: Whether layers that read one tensor share a precision.
        tie: All layers that one of these globs matches share a precision; ``*``: every layer.
        tie_blocks: Whether the layers of a block share a precision.
        tie_inner: Whether all layers but the first and the last do.
        bias_correction: As in ``mpq.Task``.
        tune: As in ``mpq.Task``.
        split: As in ``mpq.Task``.
        steps: What the paper does with the answer, in order, a sentence each.
        orders_tuning: Whether it says in which order layers are fine-tuned: that of what they lose
            in the answer, the most first.
        allow: Globs of layers, and what these may take instead of the candidates.
        kv_cache: What keys and values of earlier tokens may be stored in; none: the recipe is of no
            cache. For how many tokens is the user's.
        kv_first: First tokens that the cache keeps as they came.
        kv_before_rotation: Whether keys are held before positions are rotated into them.

    Raises:
        InputError: If it has no candidates or no choices, its version is no number from 1 on, or it
            says how a cache is kept, and not in what.
    """

    name: str
    version: int
    summary: str
    paper: Paper
    formula: str
    sensitivity: str
    solver: str
    candidates: tuple[str, ...]
    constraint: str
    choices: tuple[Choice, ...]
    departures: tuple[str, ...] = ()
    weight_range: str = "minmax"
    activation_range: str = "minmax"
    rounding: str = "nearest"
    source: str = ""
    transforms: tuple[str, ...] = ()
    ends: str | None = None
    find_ties: bool = True
    tie: tuple[str, ...] = ()
    tie_blocks: bool = False
    tie_inner: bool = False
    bias_correction: bool = False
    tune: str | None = None
    split: str = "none"
    steps: tuple[str, ...] = ()
    orders_tuning: bool = False
    allow: Allowed = ()
    kv_cache: tuple[str, ...] = ()
    kv_first: int = 0
    kv_before_rotation: bool = False

    def __post_init__(self) -> None:
        if self.version < 1 or not self.candidates or not self.choices:
            raise InputError(
                f"recipe {self.name!r} needs a version from 1 on, candidates, and its choices with "
                "their sources"
            )
        if not self.kv_cache and (self.kv_first or self.kv_before_rotation):
            raise InputError(
                f"recipe {self.name!r}: kv_first and kv_before_rotation go with kv_cache"
            )

    @cached_property
    def settings(self) -> Mapping[str, Value]:
        """All that it settles of a search, by the names that ``mpq.Task`` and ``mpq.search`` have.

        Examples are settled where the paper makes its own, caches where it is of them. No other
        answer may take the place of the recipe's (``safeguard``).
        """
        found: dict[str, Value] = {
            **NEVER,
            "sensitivity": self.sensitivity,
            "solver": self.solver,
            "candidates": self.candidates,
            "weight_range": self.weight_range,
            "activation_range": self.activation_range,
            "rounding": self.rounding,
            "transforms": self.transforms,
            "ends": self.ends,
            "find_ties": self.find_ties,
            "tie": self.tie,
            "tie_blocks": self.tie_blocks,
            "tie_inner": self.tie_inner,
            "bias_correction": self.bias_correction,
            "tune": self.tune,
            "split": self.split,
            "safeguard": False,
        }
        if self.allow:
            found["allow"] = self.allow
        if self.kv_cache:
            found |= {name: getattr(self, name) for name in CACHE_SETTINGS}
        return found | ({"calibration": self.source} if self.source else {})

    @property
    def command(self) -> str:
        """The same search said in full, but for what is the user's (``yours``)."""
        return " ".join(["mpq search", *(w for w in self.words.values() if w)])

    @property
    def yours(self) -> tuple[str, ...]:
        """What neither its name nor its command says, with the options that do; a sentence each."""
        amount = "kv_cache_bytes=1MiB" if self.kv_cache else "weight_bytes=1x:w8a32"
        network = "--model FILE.py:FUNCTION" + ("" if self.source else " --data FILE.py:FUNCTION")
        said = [
            f"A limit is --limit RESOURCE=AMOUNT, such as --limit {amount}.",
            f"Your own network is {network}; without, it is the built-in one.",
        ]
        if self.source:
            said.append(
                f"The command also needs the shape of an example: --data {self.source}:shape=SHAPE "
                "(of the built-in network 1x8x8). What answers are measured on is --eval-data "
                "FILE.py:FUNCTION."
            )
        if self.kv_cache:
            said.append("How many tokens the cache holds is --kv-tokens NUMBER.")
        return tuple(said)

    @cached_property
    def words(self) -> Mapping[str, str]:
        """Setting to the option that says the same; empty where that is the default."""
        told = {name: x for name, x in self.settings.items() if name not in NEVER}
        return {name: _words(name, value) for name, value in told.items()}


def _words(name: str, value: Value) -> str:
    option = OPTIONS[name]
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-") if name in _BOTH else ""
    if value is None or value == ():
        return ""
    if not isinstance(value, tuple):
        return f"{option} {quote(str(value))}"
    each = [x if isinstance(x, str) else f"{x[0]}={','.join(x[1])}" for x in value]
    if name in _REPEATED:  # quoted, as a shell would take a glob for files
        return " ".join(f"{option} {quote(x)}" for x in each)
    return f"{option} {quote(','.join(each))}"


_REPEATED: Final = ("tie", "allow")
"""Settings whose option is given once for each glob."""
_BOTH: Final = ("find_ties", "safeguard")
"""Settings whose default is yes."""
