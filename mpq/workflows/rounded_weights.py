"""Every layer's weight at every candidate, rounded with regard to the calibration examples."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, final

import numpy as np
import torch

from mpq._support.arrays import Array
from mpq._support.pages import is_streaming
from mpq._support.paired_gains import (
    LEVEL,
    is_above_chance,
    relative_gains,
    standard_error,
)
from mpq._support.progress import track
from mpq.errors import GradientError, InputError
from mpq.network.mapped import release
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.precision import ORIGINAL, Precision, spell_weight
from mpq.quantization.stored import StoredWeight
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding import AutoRounding, Nearest, WeightRounding
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.moment_mixing import SecondMoments, sharing_a_weight
from mpq.sensitivity.passes.number_information import number_information
from mpq.workflows.codes_cache import CodesCache, outside_memory
from mpq.workflows.codes_keys import ToRound, ToRoundTogether, network_key
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.optimism import optimism, pooled
from mpq.workflows.shown_examples import Share, Shown, shares

SINGLE: Final = (
    "auto tries codes on calibration examples that they were not found with, and there is a single "
    "one, or one batch whose rows mix"
)

NUM_TRIED: Final = 3
"""Formats that a trial is made of: those of the fewest, the middle and the most bits."""
MOST_PARTS: Final = 16
"""Of a network's layers, which are tried apart where they break it together."""


@final
@dataclass(frozen=True, eq=False)
class RoundedWeights:
    """What a rounding found.

    Args:
        stored: Layer name and format to its codes.
        to_nearest: Layers that were rounded to nearest all the same, and why.
        unhelped: Precisions at which weights were rounded to nearest, as unseen examples did not
            say that ``auto``'s rounding helps: all, or those of the fewest bits.
        unguided: Layers whose rounding the loss did not guide, and why.
        optimism: Layer to the factor by which prices of its codes are too low, as far as a trial
            told (``mpq.workflows.optimism``).
    """

    stored: Mapping[tuple[str, TensorFormat], StoredWeight] = field(default_factory=dict)
    to_nearest: Mapping[str, str] = field(default_factory=dict)
    unhelped: tuple[str, ...] = ()
    unguided: Mapping[str, str] = field(default_factory=dict)
    optimism: Mapping[str, float] = field(default_factory=dict)


def rounded_weights(
    on: Estimation,
    rounding: WeightRounding,
    seed: int,
    kept: CodesCache | None = None,
    most_bytes: int | None = None,
) -> RoundedWeights:
    """Rounds the weights of all layers at all candidates; nothing to do for ``nearest``.

    Layers that share a weight are looked at once, and get the same codes. Takes a forward and a
    backward pass over the calibration examples, and a second moment ``[K, K]`` for every layer;
    ``auto`` keeps one for each share of the examples, where they fit into memory, or else makes
    these passes for every trial. A trial takes six forward passes over a share of the examples, or
    more where few bits break the network (``MOST_PARTS``); where one share does not tell, there is
    one for each of the others as well. Of a network that cannot be differentiated the second
    moments are the plain ones.

    Args:
        on: Network, calibration examples, candidates, and the quantizer whose grids scales start
            from.
        rounding: How codes are found.
        seed: Of the probes that guide the second moments.
        kept: Where codes are looked up and kept; ``None``: nowhere.
        most_bytes: That second moments of some layers may take, for which passes are made then;
            default: one pass is for all.
    """
    formats = [f for f in on.weights.formats if f.number.has_codes]
    if isinstance(rounding, Nearest) or not formats:
        return RoundedWeights()
    if not isinstance(rounding, AutoRounding):
        return rounded_by_all(Shown.all_of(on, seed, most_bytes), rounding, formats, seed, kept)
    if on.data.num_examples < 2:
        return RoundedWeights(to_nearest=dict.fromkeys(on.names, SINGLE))
    every, left_out = shares(on, rounding.share, seed, most_bytes)
    helped, too_low = _Trial(on, rounding, seed, left_out, kept).told(formats)
    unhelped = tuple(spell_weight(f) for f in formats if f not in helped)
    found = rounded_by_all(every, rounding, helped, seed, kept) if helped else RoundedWeights()
    return replace(found, unhelped=unhelped, optimism=too_low)


_Told: TypeAlias = tuple[list[TensorFormat], dict[str, float]]
"""Formats, and the ``optimism`` of their codes."""
_Tried: TypeAlias = tuple[dict[TensorFormat, Array], dict[str, float]]
"""``[N]`` gains of every format, and the ``optimism`` of their codes."""


@final
@dataclass(frozen=True, eq=False)
class _Trial:
    """What unseen examples say of ``auto``'s rounding.

    Args:
        on: As ``rounded_weights``.
        rounding: As ``rounded_weights``.
        seed: As ``rounded_weights``.
        left_out: Shares of the examples, the first of which is asked first.
        kept: As ``rounded_weights``.
    """

    on: Estimation
    rounding: AutoRounding
    seed: int
    left_out: Sequence[Share]
    kept: CodesCache | None

    def told(self, formats: Sequence[TensorFormat]) -> _Told:
        """As ``helped``, once for all searches that keep it."""
        if self.kept is None:
            return self.helped(formats)
        # Where moments are collected apart, the trial does not tell it: another record.
        is_full = self.left_out[0][0].others is not None
        what = "trial with optimism" if is_full else "trial alone"
        name = network_key(self.on, self.rounding, formats, self.seed, what)
        known = self.kept.record(name)
        is_known = _all_know(self.on, known)
        if known is None or not is_known:
            helped, too_low = self.helped(formats)
            known = {"helped": [formats.index(f) for f in helped], "optimism": too_low}
            self.kept.keep_record(name, known)
        return [formats[index] for index in known["helped"]], known["optimism"]

    def helped(self, formats: Sequence[TensorFormat]) -> _Told:
        """Formats in which weights are rounded with regard to data: all, none, or all but a few.

        And by which factor prices of layers are too low then (``optimism``).

        Left out are those of the fewest bits, as long as these alone lose more. Not others: codes
        that fit the examples seem to lose less than codes of more bits that do not.
        """
        left = list(formats)
        while left:
            tried = _spread(left)
            worse, too_low = self._unhelped(tried)
            if not worse:
                return left, too_low
            if worse != tried[:1]:
                return [], {}
            left = [f for f in left if f.number.bits > worse[0].number.bits]
        return [], {}

    def _unhelped(self, formats: Sequence[TensorFormat]) -> _Told:
        """Formats in which the network loses more on examples that its codes were not found with.

        All of them, where it does not lose less than by chance. Where the first part of the
        examples does not say that all is well, the other parts are left out in turn as well.
        """

        def tried(share: Share) -> _Tried:
            return _left_out(self.on, self.rounding, formats, self.seed, share, self.kept)

        first, *others = self.left_out
        found, too_low = tried(first)
        # No gains at all: no layer has codes of its own, which is said layer by layer.
        if not found or (not _worse(found) and _is_helped(found)):
            return [], too_low
        every = [(found, too_low), *(pair for pair in map(tried, others) if pair[0])]
        found = {f: np.concatenate([gains[f] for gains, _ in every]) for f in formats}
        worse = _worse(found) or ([] if _is_helped(found) else [*formats])
        return worse, pooled(factors for _, factors in every)


def _spread(formats: Sequence[TensorFormat]) -> list[TensorFormat]:
    """At most ``NUM_TRIED``."""
    by_bits = sorted(formats, key=lambda f: f.number.bits)
    places = {0, len(by_bits) // 2, len(by_bits) - 1}
    return [by_bits[i] for i in sorted(places)]


def _worse(gains: Mapping[TensorFormat, Array]) -> list[TensorFormat]:
    return [f for f, gain in gains.items() if gain.mean() < -standard_error(gain)]


def _is_helped(gains: Mapping[TensorFormat, Array]) -> bool:
    # Asked twice at most.
    return is_above_chance(np.mean(list(gains.values()), axis=0), LEVEL / 2)


def _left_out(
    on: Estimation,
    rounding: AutoRounding,
    formats: Sequence[TensorFormat],
    seed: int,
    share: Share,
    kept: CodesCache | None,
) -> _Tried:
    """``[N]`` gains of every format on examples that codes were not found with; ``optimism``."""
    seen, unseen = share
    trial = rounded_by_all(seen, rounding, formats, seed, kept)
    if not trial.stored:
        return {}, {}
    original = Reference(on.network.module, unseen, on.network.metric, on.network.allow_randomness)
    by_nearest = Evaluator(on.network, on.quantizer, original)
    by_trial = replace(by_nearest, quantizer=replace(on.quantizer, stored=trial.stored))
    tried = track(formats, "trying roundings")
    gains = {f: _gains(by_nearest, by_trial, f) for f in tried}
    return gains, optimism(on, trial.stored, formats, seen)


def _gains(by_nearest: Evaluator, by_trial: Evaluator, tensor_format: TensorFormat) -> Array:
    """``[N]`` of examples: how much less the network loses by the trial, of what it loses at all.

    Where all layers at once break it either way, which says nothing of them, by every fourth layer
    and so on, or by as many parts of them as it takes. Where one way alone does, it is the worse.
    """
    names = [layer.name for layer in by_nearest.network.layers]
    # Inputs stay as they are: it is the weights' rounding that is asked about.
    precision = Precision(tensor_format, ORIGINAL.activation)
    num_parts, most = 1, min(len(names), MOST_PARTS)
    while True:
        parts = [dict.fromkeys(names[i::num_parts], precision) for i in range(num_parts)]
        nearest, tried = (
            np.array([e.measure(part).by_example for part in parts])  # [parts, N]
            for e in (by_nearest, by_trial)
        )
        least = min(nearest.mean(), tried.mean())
        if least <= by_nearest.reference.uninformed or num_parts == most:
            return relative_gains(nearest.sum(axis=0), tried.sum(axis=0))
        num_parts = min(4 * num_parts, most)


def rounded_by_all(
    shown: Shown,
    rounding: WeightRounding,
    formats: Sequence[TensorFormat],
    seed: int,
    kept: CodesCache | None = None,
) -> RoundedWeights:
    """The weights of all layers in some formats, by all examples that are shown, without a trial.

    With ``kept``, layers that were rounded before are not rounded again; where all were, no pass is
    made at all (``network_key``).
    """
    on = shown.on
    name = "" if kept is None else network_key(on, rounding, formats, seed, shown.name)
    known = None if kept is None else _known(kept, name, formats)
    is_known = _all_know(on, known)
    if known is not None and is_known:
        return known
    found: dict[tuple[str, TensorFormat], StoredWeight] = {}
    keys: dict[str, str] = {}
    missing: dict[str, str] = {}
    unguided: dict[str, str] = {}
    layers_of: dict[int, list[str]] = {}

    def weights() -> Iterator[ToRound]:
        for moments in information(shown, rounding, seed):
            missing.update(moments.missing)
            unguided.update(moments.unguided)
            left = dict(moments.values)
            del moments  # each goes when its weight is rounded
            for layers in track(_sharing(on, [*left]), "rounding weights"):
                moment, *_ = [left.pop(name) for name in layers]
                asked = to_round(on, layers[0], moment, formats, rounding)
                layers_of[id(asked)] = layers
                yield asked

    for together in ToRoundTogether.of(weights()):
        codes = [*map(outside_memory, together.codes())] if kept is None else kept.codes(together)
        for place, (asked, own) in enumerate(zip(together.weights, codes, strict=True)):
            layers = layers_of.pop(id(asked))
            found |= {(x, f): w for x in layers for f, w in zip(formats, own, strict=True)}
            if kept is not None:
                keys |= dict.fromkeys(layers, together.keys[place])
    made = RoundedWeights(found, missing, unguided=unguided)
    if kept is not None:
        record = {"codes": keys, "to_nearest": made.to_nearest, "unguided": made.unguided}
        kept.keep_record(name, record)
    return made


def information(shown: Shown, rounding: WeightRounding, seed: int) -> Iterator[SecondMoments]:
    """By what errors count: second moments, or Fisher information of every number.

    Raises:
        InputError: If the network is streamed, and every number has a weight.
    """
    if not rounding.weighs_numbers:
        yield from shown.moments()
        return
    if is_streaming():
        raise InputError(
            f"rounding {rounding.name} (--rounding) holds as many numbers as the network has, "
            "which is streamed (--memory): take another one of `mpq roundings`, such as gptq"
        )
    try:
        yield number_information(replace(shown.on, ranks=None), seed)
    except GradientError:
        yield from shown.moments()  # which says why it is not guided


def _all_know(on: Estimation, known: object) -> bool:
    """Whether nobody has to look at the data: ranks with folders of their own look together."""
    is_known = known is not None
    return is_known if on.ranks is None else all(on.ranks.gathered(is_known))


def _known(kept: CodesCache, name: str, formats: Sequence[TensorFormat]) -> RoundedWeights | None:
    """What was kept of a network, if all of it is there."""
    record = kept.record(name)
    if record is None:
        return None
    found: dict[tuple[str, TensorFormat], StoredWeight] = {}
    for layer, key in record["codes"].items():
        weights = kept.weights(key)
        if weights is None:
            return None
        found |= {(layer, f): w for f, w in zip(formats, weights, strict=True)}
    return RoundedWeights(found, record["to_nearest"], unguided=record["unguided"])


def _sharing(on: Estimation, known: Collection[str]) -> list[list[str]]:
    """Layers that are rounded, those together that share a weight, and so its codes."""
    layers = (layer for layer in on.network.layers if layer.name in known)
    return [[layer.name for layer in each] for each in sharing_a_weight(layers)]


def to_round(
    on: Estimation,
    name: str,
    moment: torch.Tensor,
    formats: Sequence[TensorFormat],
    rounding: WeightRounding,
) -> ToRound:
    """One layer's weight in some formats.

    Args:
        on: The network, and the quantizer whose grids scales start from.
        name: The layer's.
        moment: See ``ToRound``.
        formats: See ``ToRound``.
        rounding: How codes are found.
    """
    layer_module = on.network.layer_module(name)
    weight = weight_of(layer_module).detach()
    rows = layout_of(layer_module).to_rows(weight).float().cpu()
    with torch.no_grad():
        grids = [on.quantizer.grid(name, rows, tensor_format) for tensor_format in formats]
    release([weight])
    numerics, weight_range = on.quantizer.numerics, on.quantizer.weight_range
    return ToRound(rows, rows, moment, formats, grids, numerics, rounding, weight_range)
