"""Parts along the rows of weights whose codes fit data: their prices, and their codes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from mpq._support.arrays import Array
from mpq.network.mapped import release
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.problem.split import Split
from mpq.quantization.channel_bits import GROUPS
from mpq.quantization.precision import Precision
from mpq.quantization.rounding import quantize_rows
from mpq.quantization.stored import StoredWeight
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding.column_losses import column_losses
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.moment_mixing import SecondMoments, sharing_a_weight
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import Shown


def shares_of_inputs(
    prepared: Prepared, split: Split, channels: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Array]:
    r"""What parts lose along the rows of weights, whose codes fit data.

    Errors of one row make good each other, so that what a part's own errors lose by themselves is
    not known. A channel's price is shared out among its weights by

    .. math:: \Delta_{o k}^2 / u_k^2

    with the steps of the format's scales and ``u`` of ``column_losses``: what GPTQ's order makes of
    an error. Errors of signs and of 0 bits are no parts of a step, as they grow with the weight:
    they stand in the step's place. Takes the pass that second moments take.

    Args:
        prepared: The network, its examples, and the codes of all formats.
        split: Which parts layers have.
        channels: Layer name to ``[O, B]``, what each channel loses.
        sizes: Layer name to consecutive weights of a row that are a part; others are left out.

    Returns:
        Layer name to ``[U, B]``; of layers without a second moment nothing.
    """
    on, found = prepared.asked, dict[str, Array]()
    for moments in _moments(prepared):
        for name in moments.values.keys() & sizes.keys() & channels.keys():
            counted = column_losses(moments.values[name]).numpy()
            columns = []
            for precision, losses in zip(on.candidates, channels[name].T, strict=True):
                shares = _shares(on, split, name, precision.weight, counted, sizes[name])
                of_channels = losses[:, None] * shares  # [O, n]
                by_unit = of_channels.ravel() if split.axis == GROUPS else of_channels.sum(axis=0)
                columns.append(by_unit)
            found[name] = np.stack(columns, axis=1)
    return found


def _shares(
    on: Estimation,
    split: Split,
    name: str,
    tensor_format: TensorFormat,
    counted: Array,
    size: int,
) -> Array:
    """``[O, n]`` of every channel's price, in ``n`` blocks of ``size`` inputs.

    Args:
        on: The network, and the codes of all formats.
        split: Which parts layers have.
        name: The layer's.
        tensor_format: Of its weight; where its parts have no bits of their own, all shares are
            alike: none of them is asked for.
        counted: ``[G, K]`` what a squared error of each input counts.
        size: Inputs in a part.
    """
    num_inputs, num_channels = counted.shape[1], len(_rows(on, name))
    count = -(-num_inputs // size)
    if not tensor_format.has_parts(split.axis):
        return np.full((num_channels, count), 1 / count)
    group = tensor_format.group_size or size
    if not tensor_format.is_scaled_integer:
        every = np.repeat(counted, num_channels // len(counted), axis=0)
        parts = _in_blocks(every * _squared_errors(on, name, tensor_format), size)
    else:
        rows = np.repeat(_in_blocks(counted, group), num_channels // len(counted), axis=0)
        rows = rows * _steps(on, name, tensor_format) ** 2  # [O, groups]
        parts = _in_blocks(rows, size // group)
    whole = parts.sum(axis=1, keepdims=True)
    evenly = np.full_like(parts, 1 / count)
    return np.asarray(np.divide(parts, whole, out=evenly, where=whole > 0))


def _in_blocks(values: Array, size: int) -> Array:
    """``[O, n]`` sums of so many neighbours of ``[O, K]``; the last block may be short."""
    return np.asarray(np.add.reduceat(values, np.arange(0, values.shape[1], size), axis=1))


def _squared_errors(on: Estimation, name: str, tensor_format: TensorFormat) -> Array:
    """``[O, K]`` of a weight to nearest."""
    rows = _rows(on, name).float()
    grid = on.quantizer.grid(name, rows, tensor_format)
    errors = quantize_rows(rows, tensor_format, grid).sub_(rows)
    return np.asarray(errors.double().square_().cpu().numpy())


def _steps(on: Estimation, name: str, tensor_format: TensorFormat) -> Array:
    """``[O, S]`` of a weight's scales in a format."""
    stored = on.quantizer.stored.get((name, tensor_format))
    if stored is not None:
        return np.asarray(np.abs(stored.scale.astype(np.float64)))
    rows = _rows(on, name)
    scale = on.quantizer.grid(name, rows, tensor_format).scale
    return np.asarray(scale.double().cpu().numpy().reshape(len(rows), -1))


def _rows(on: Estimation, name: str) -> torch.Tensor:
    layer_module = on.network.layer_module(name)
    return layout_of(layer_module).to_rows(weight_of(layer_module).detach())


def round_parts(prepared: Prepared, answers: Iterable[Mapping[str, Precision]]) -> None:
    """Rounds weights whose inputs or groups differ in bits, with regard to data, and keeps codes.

    Nothing to do where weights are rounded to nearest. Takes the pass that second moments take,
    for all answers together.

    Args:
        prepared: Where codes are kept, each answer's for itself.
        answers: Layer name to precision, of all layers.
    """
    asked = [(precisions, _coupled(prepared, precisions)) for precisions in answers]
    if not any(formats for _, formats in asked):
        return
    found: dict[tuple[str, TensorFormat], StoredWeight] = {}
    layers = prepared.network.layers
    for moments in _moments(prepared):
        for same in sharing_a_weight(x for x in layers if x.name in moments.values):
            names = [layer.name for layer in same]
            wanted = dict.fromkeys(f[n] for _, f in asked for n in names if n in f)
            for tensor_format in wanted:
                codes = _codes(prepared, names[0], moments, tensor_format)
                found |= {(name, tensor_format): codes for name in names}
    for precisions, formats in asked:
        cells = {cell: found[cell] for cell in formats.items()}
        prepared.own_codes.keep(precisions, cells)


def _coupled(prepared: Prepared, precisions: Mapping[str, Precision]) -> dict[str, TensorFormat]:
    """Layer to the format of its weight, where it has to be rounded again."""
    stored = prepared.own_codes.quantizer(precisions, prepared.quantizer).stored
    return {
        name: weight
        for name, weight in ((name, precision.weight) for name, precision in precisions.items())
        if weight.is_coupled
        and (name, weight) not in stored
        and any((name, width) in stored for width in weight.by_channel)
    }


def _moments(prepared: Prepared) -> Iterable[SecondMoments]:
    on = replace(prepared.asked, ranks=None)
    return Shown.all_of(on, prepared.task.seed, prepared.most_moment_bytes).moments()


def _codes(
    prepared: Prepared, name: str, moments: SecondMoments, tensor_format: TensorFormat
) -> StoredWeight:
    on, rounding = prepared.asked, prepared.task.weight_rounding
    original = _rows(on, name)
    rows = original.float().cpu()
    with torch.no_grad():
        grids = on.quantizer.own_grids(name, rows, tensor_format)
        codes = rounding.codes_of_inputs(
            rows, moments.values[name], tensor_format, grids, on.quantizer.numerics
        )
    release([original])
    return codes.stored(rows)
