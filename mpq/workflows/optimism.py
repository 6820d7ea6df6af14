"""How much more the errors of codes are on unseen examples than on those that they fit."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import exp, log
from statistics import fmean
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import spell_weight
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.stored import StoredWeight
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding.diagonal_blocks import product
from mpq.sensitivity import Estimation
from mpq.workflows.shown_examples import Shown

OPTIMISM: Final = 2.0
"""Factor by which prices of a layer are too low, from which on a second solve is worth its time."""
MOST: Final = 1e6
"""An error that is nothing on seen examples is taken for a millionth of that on the others."""


def optimism(
    on: Estimation,
    stored: Mapping[tuple[str, TensorFormat], StoredWeight],
    formats: Sequence[TensorFormat],
    seen: Shown,
) -> dict[str, float]:
    r"""Layer to the factor by which its price is too low, as its codes fit the examples.

    .. math:: \rho = \frac{d^T H_u d}{d^T H_s d} \Big/ \frac{n^T H_u n}{n^T H_s n}

    with the second moments ``H`` of unseen and of seen examples, summed over rows, the errors ``d``
    of codes that the seen ones gave, and those ``n`` of rounding to nearest, which fit neither:
    what examples differ in by themselves cancels. The geometric mean over formats. Near 1 where
    there are more positions than inputs; hundreds of a layer of 1,280 inputs that reads 36 vectors,
    whose codes leave errors in directions that none of them has. (The optimism of an apparent
    error, Efron 1986, JASA 81:461, as a factor and per layer. Ours.)

    Args:
        on: The network, and a quantizer that rounds to nearest.
        stored: Codes from the seen examples.
        formats: Of the codes.
        seen: The examples; empty where second moments of the others are not at hand.
    """
    if (unseen := seen.others) is None:
        return {}
    by_codes = replace(on.quantizer, stored=stored)
    found = dict[str, float]()
    for ours, others in zip(seen.moments(), unseen.moments(), strict=True):
        for name in ours.values.keys() & others.values.keys():
            tried = [f for f in formats if (name, f) in stored]
            pair = ours.values[name], others.values[name]
            logs = [
                log(_growth(on, by_codes, name, f, pair))
                - log(_growth(on, on.quantizer, name, f, pair))
                for f in tried
            ]
            if logs:
                found[name] = exp(fmean(logs))
    return {name: found[name] for name in on.names if name in found}


def pooled(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The geometric mean over several shares of the examples, of layers that all know."""
    first, *others = found
    names = [name for name in first if all(name in other for other in others)]
    return {name: exp(fmean(log(each[name]) for each in (first, *others))) for name in names}


def is_too_low(found: Mapping[str, float]) -> bool:
    """Whether the price of any layer is so much too low that others are worth a solve."""
    return max(found.values(), default=0.0) > OPTIMISM


def factors(loss: CostTable, found: Mapping[str, float], unhelped: Collection[str]) -> Array:
    """``[L, B]`` each layer's, where a precision has codes that fit examples; else 1.

    Args:
        loss: Of the problem.
        found: Layer name to factor.
        unhelped: Precisions of weights that are rounded to nearest all the same.
    """
    weights = [precision.weight for precision in loss.precisions]
    is_coded = [x.number.has_codes and spell_weight(x) not in unhelped for x in weights]
    of_layers = np.array([found.get(name, 1.0) for name in loss.layers])
    return np.where(is_coded, of_layers[:, None], 1.0)


def raised(prices: Array, by: Array) -> Array:
    """Prices times factors; one below 0, as near an incumbent, is no error that fits anything."""
    return np.asarray(np.where(prices > 0, by, 1.0) * prices)


def _growth(
    on: Estimation,
    quantizer: Quantizer,
    name: str,
    tensor_format: TensorFormat,
    moments: tuple[Tensor, Tensor],
) -> float:
    """The form of a weight's errors by the second of two moments, in units of the first."""
    layer_module = on.network.layer_module(name)
    to_rows = layout_of(layer_module).to_rows
    with torch.no_grad():
        rows = to_rows(weight_of(layer_module)).float()
        errors = to_rows(quantizer.weight(name, layer_module, tensor_format)).float() - rows
        # [G, K, O / G]
        columns = errors.cpu().unflatten(0, (len(moments[0]), -1)).mT
        seen, unseen = (float((product(h, columns) * columns).double().sum()) for h in moments)
    # A weight that is on its grid already errs nowhere.
    least = max(seen, unseen) / MOST
    return max(unseen, least) / max(seen, least) if least > 0 else 1.0
