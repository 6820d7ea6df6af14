"""The weights of a network as they are in the assigned formats, in a file."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mpq._support.files import write_files
from mpq._support.tensor_file import file_parts
from mpq.backends.simulate import prepared, quantizer_of
from mpq.backends.streamed import why_run_streamed
from mpq.network.mapped import streaming
from mpq.network.tensor_entries import bytes_of, tensor_entries
from mpq.problem.assignment import Assignment
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.tensor_format import TensorFormat


def save_quantized(
    model: nn.Module, assignment: Assignment, path: Path, memory: int | str | None = None
) -> list[Path]:
    """Writes what ``mpq.quantize`` makes of a network: its state dict, in safetensors.

    Every weight is rounded when it is written, so that the rounded network is never in memory as a
    whole; where the network itself would not fit, it is streamed from its files.

    Args:
        model: The network that the assignment was found for, in evaluation mode.
        assignment: The precision of every layer.
        path: The file; its header has the assignment's fingerprint, which tells the network.
        memory: See ``Task``.

    Raises:
        InputError: If the network does not fit into ``memory`` and cannot be streamed.
        MismatchError: If the assignment belongs to another network.
        ModelError: If the model is in training mode, or a layer is quantized already.
        OutputError: If the file cannot be written.
    """
    with streaming(bool(why_run_streamed(model, memory, assignment))):
        module, quantizer = prepared(model, assignment), quantizer_of(assignment)
        entries = tensor_entries(module.state_dict())
        for name, precision in assignment.precisions.items():
            if not precision.weight.is_exact:
                key, layer_module = f"{name}.weight", module.get_submodule(name)
                numbers = partial(_rounded, quantizer, name, layer_module, precision.weight)
                entries[key] = replace(entries[key], numbers=numbers)
        told = {"mpq_fingerprint": assignment.fingerprint}
        return write_files(path.parent, {path.name: partial(file_parts, entries, told)})


def _rounded(
    quantizer: Quantizer, name: str, layer_module: nn.Module, tensor_format: TensorFormat
) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    with torch.no_grad():
        return bytes_of(quantizer.weight(name, layer_module, tensor_format))
