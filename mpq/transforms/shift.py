"""Shifts: the middle of every channel's range comes to 0, and biases make up for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.reparametrization import Addition
from mpq.quantization.observer import needs_range
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import quantize_activation
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.channel_rules import RULES, keeps, moves, reshapes
from mpq.transforms.channels import ChannelTrace
from mpq.transforms.label_trace import FREE, Call, Labels
from mpq.transforms.layer_inputs import NUM_EXAMPLES, LayerInput, layer_inputs
from mpq.transforms.layer_rules import Rule, attention, convolution, matrix_product, normalizes
from mpq.transforms.sites import Site, Sites


def _ends_inputs(rule: Rule) -> Rule:
    """The same, of a layer that makes channels and cannot make up for a shift of its inputs."""

    def ended(trace: ChannelTrace, call: Call) -> None:
        trace.end([call.args[0]], f"is read by a {call.operation}")
        rule(trace, call)

    return ended


_SAME: Final = ("clone", "_to_copy", "alias", "detach", "dropout", "feature_dropout")
SHIFT_RULES: Final[Mapping[str, Rule]] = {
    **{name: rule for name, rule in RULES.items() if rule in (moves, reshapes)},
    **dict.fromkeys(_SAME, keeps),
    # Of a product of two tensors, the left one need not be weights that add up to 1.
    **{name: rule for name, rule in RULES.items() if rule is attention},
    "mm": matrix_product,
    "addmm": matrix_product,
    "convolution": _ends_inputs(convolution),
    "native_layer_norm": normalizes(2, -1),
}
"""Operation of ATen to its rule, for f(x - z) = f(x) - z."""


@final
@dataclass(frozen=True)
class Shift(Transform):
    r"""Inputs of linear layers are moved by channel, and biases make up for it.

    .. math:: z_c = \tfrac12 (\max x_c + \min x_c), \quad x \to x - z, \quad b \to b + W z

    Outlier Suppression+ (Wei et al. 2023, arXiv:2304.09145): a channel that lies far from 0 as a
    whole takes a range of its own size afterwards. The bias of what makes the channels takes up
    ``-z``: a LayerNorm's, or that of a linear layer from whose outputs only moves lead here, and
    attention, whose weights add up to 1. Every reader needs a bias as well.

    With ``smooth`` behind it, what RepQ-ViT (Li et al. 2022, arXiv:2212.08254) does behind
    LayerNorm. Where we depart from the first paper: a site is moved only where the readers' outputs
    have a smaller squared error by it, on a sample of what they read, their inputs rounded.
    """

    name: ClassVar[str] = "shift"
    summary: ClassVar[str] = "every channel's range around 0, by biases: Outlier Suppression+"

    def found(self, on: Transforming) -> Found:
        """See ``Transform.found``; takes a pass over two examples, and one over up to 64."""
        sites = Sites.of(on.module, on.traced, SHIFT_RULES)
        refused = [(site, _why_not(site, sites)) for site in sites.sites]
        usable = [site for site, why in refused if not why]
        why_not = {r.weight.parameter: why for s, why in refused if why for r in s.readers}
        names = [reader.weight.parameter for site in usable for reader in site.readers]
        read = layer_inputs(on.module, on.batches(NUM_EXAMPLES), names)
        parameters = {name: p.detach() for name, p in on.module.named_parameters()}
        with torch.no_grad():
            changes = tuple(
                change
                for site in usable
                if all(r.weight.parameter in read for r in site.readers)
                for change in _changes(site, parameters, read, on)
            )
        return Found(changes, len(usable), {**sites.why_not, **why_not})


def _why_not(site: Site, sites: Sites) -> str:
    """Why the channels of a site cannot be moved; empty: they can."""
    if len(site.members) < 2:
        return f"reads channels of {site.name}, which has no bias"
    for reader in site.readers:
        if not reader.bias:
            return f"reads what {reader.weight.parameter} reads as well, which has no bias"
        if reader.bias in sites.shared_biases:
            return f"meets {reader.bias}, which is used otherwise as well"
    return ""


def _changes(
    site: Site, parameters: Mapping[str, Tensor], read: Mapping[str, LayerInput], on: Transforming
) -> tuple[Addition, ...]:
    """Of all biases around a site; none where its readers gain nothing."""
    middles = _middles(site, read)
    readers = {reader.weight.parameter: reader for reader in site.readers}.values()
    saved, terms = 0.0, []
    for reader in readers:
        along, inputs = reader.weight, read[reader.weight.parameter]
        weight = parameters[along.parameter].movedim(along.axis, -1).float()  # [O, C]
        moved = torch.from_numpy(_by_label(middles, reader.inputs))
        x = torch.cat(inputs.samples)
        errors = [_error(each, weight, on) for each in (x, x - moved.to(x))]
        saved += np.log(max(errors[0], 1e-300)) - np.log(max(errors[1], 1e-300))
        wide = parameters[along.parameter].double().cpu().movedim(along.axis, -1)
        terms.append(Addition(reader.bias, 0, (wide @ moved).numpy()))
    if saved <= 0:
        return ()
    bias = site.members[1]
    return (Addition(bias.parameter, bias.axis, -_by_label(middles, bias.labels)), *terms)


def _middles(site: Site, read: Mapping[str, LayerInput]) -> Array:
    """``[size]`` middle of every channel's range; 0 where it is not free."""
    low, high = (np.full(site.size, sign * np.inf) for sign in (1, -1))
    for reader in site.readers:
        index, inputs = np.array(reader.inputs), read[reader.weight.parameter]
        known = index != FREE
        np.minimum.at(low, index[known], inputs.low.cpu().numpy()[known])
        np.maximum.at(high, index[known], inputs.high.cpu().numpy()[known])
    is_known = site.is_free & np.isfinite(low) & np.isfinite(high)
    found: Array = np.where(
        is_known, (np.where(is_known, low, 0) + np.where(is_known, high, 0)) / 2, 0
    )
    return found


def _by_label(values: Array, labels: Labels) -> Array:
    """``[n]`` the value of each label; 0 of ``FREE``."""
    index = np.array(labels)
    found: Array = np.where(index == FREE, 0.0, values[np.maximum(index, 0)])
    return found


def _error(x: Tensor, weight: Tensor, on: Transforming) -> float:
    """Squared error of a layer's outputs, its inputs rounded."""
    spec, calibrated = on.precision.activation, None
    if needs_range(spec):
        method = RANGE_METHODS.build(on.ranges.activation)
        low, high = method.ends(x.reshape(1, -1), spec.number, spec.symmetric)
        calibrated = ActivationRange(float(low), float(high)).with_zero
    rounded = quantize_activation(x, spec, calibrated, 1, on.numerics)
    return float(((rounded - x) @ weight.T).square().sum())
