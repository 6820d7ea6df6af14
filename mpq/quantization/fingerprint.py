"""What determines a measurement, as checksums: the key of a journal."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq._support.pages import release_arrays
from mpq._support.told import told
from mpq.network.examples import Calibration
from mpq.network.mapped import release
from mpq.network.network import Network
from mpq.quantization.numerics import OWN
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.stored import StoredWeight
from mpq.quantization.tensor_format import TensorFormat


def measurement_key(
    network: Network, data: Calibration, quantizer: Quantizer, candidates: Sequence[Precision]
) -> dict[str, str]:
    """What determines anything that is measured of a network: the part of a key that is common.

    Reads the data twice.
    """
    # With targets, which change what estimators and accuracies say at the same inputs.
    examples = (value for batch in data.uncut for value in (*batch.tensors, batch.targets))
    seed, start = network.allow_randomness, data.first().start
    objects = [batch.objects for batch in data.uncut if batch.objects is not None]
    return {
        # Only where it is set: journals of networks that draw nothing stay as they are.
        **({} if seed is None else {"allow_randomness": str(seed)}),
        **({} if network.tokens_kept is None else {"tokens_kept": repr(network.tokens_kept)}),
        "layers": network.fingerprint,
        "weights": checksum(_tensors(network.module.state_dict().values())),
        "metric": repr(network.metric),
        # Signs are those of the examples' places.
        **({"first_example": str(start)} if start else {}),
        "data": checksum(_tensors(examples)),
        **({"objects": told(objects, checksum)} if objects else {}),
        "precisions": ", ".join(map(str, candidates)),
        **quantizer_key(quantizer),
    }


def quantizer_key(quantizer: Quantizer) -> dict[str, str]:
    """The part of it that says how layers are quantized."""
    known = quantizer.ranges.known.items()
    # Sorted: in which order layers were calibrated must not make another key.
    ranges = sorted(
        (layer, repr(f), found.low, found.high, *found.extras) for (layer, f), found in known
    )
    return {
        # Only where it is another one: else a search for a target would believe rows of another
        # arithmetic, and journals of our own stay as they are.
        **({} if quantizer.numerics == OWN else {"numerics": repr(quantizer.numerics)}),
        **({} if quantizer.steps is None else {"steps": repr(quantizer.steps.clusters)}),
        **({"rounding": _stored_checksum(quantizer)} if quantizer.stored else {}),
        "weight_range": quantizer.weight_range,
        "activation_ranges": hashlib.sha256(repr(ranges).encode()).hexdigest(),
    }


def restricted(quantizer: Quantizer, precisions: Mapping[str, Precision]) -> Quantizer:
    """What an assignment needs of a quantizer: among other candidates it is the same."""
    weights = {(name, p.weight) for name, p in precisions.items()}
    inputs = {(name, p.activation) for name, p in precisions.items()}
    stored = {cell: codes for cell, codes in quantizer.stored.items() if cell in weights}
    known = {cell: found for cell, found in quantizer.ranges.known.items() if cell in inputs}
    return replace(quantizer, stored=stored, ranges=ActivationRanges(known))


def _by_cell(item: tuple[tuple[str, TensorFormat], StoredWeight]) -> str:
    return repr(item[0])


def _stored_checksum(quantizer: Quantizer) -> str:
    """Of all weights that were rounded with regard to data."""
    found = hashlib.sha256()
    for (name, tensor_format), weight in sorted(quantizer.stored.items(), key=_by_cell):
        found.update(f"{name} {tensor_format}".encode())
        for array in weight.parts().values():
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        release_arrays(weight.parts().values())
    return found.hexdigest()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))


def checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the tensors' numbers, dtypes and shapes, in order."""
    found = hashlib.sha256()
    for tensor in tensors:
        # Equal bytes in another dtype or shape are another tensor.
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy has no bfloat16; flat, because torch views no scalar as bytes.
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        release([tensor])
    return found.hexdigest()
