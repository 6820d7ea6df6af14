"""Tensors as files in the format of safetensors have them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mpq._support.pages import is_streaming
from mpq._support.tensor_file import Entry, unnamed_file

KINDS: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
"""As the header of a file spells types."""

_STAND_INS: Final = {1: "I8", 2: "I16", 4: "I32", 8: "I64"}


def tensor_entries(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Of tensors by name; none is copied before it is written, and then by itself."""
    return {
        name: Entry(
            KINDS[tensor.dtype],
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
            partial(bytes_of, tensor),
        )
        for name, tensor in tensors.items()
    }


def bytes_of(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The numbers of a tensor, row by row, as bytes."""
    # Flat, because torch views no scalar as bytes; by torch, because numpy has no bfloat16.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def outside_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, while streaming in a file of the temporary folder, which has no name.

    Raises:
        OutputError: If there is no room for it.
    """
    if not is_streaming():
        return dict(tensors)
    # As integers of their size, since numpy has no bfloat16.
    found = unnamed_file(
        {
            name: replace(entry, kind=_STAND_INS[tensors[name].element_size()])
            for name, entry in tensor_entries(tensors).items()
        }
    )
    return {
        name: torch.from_numpy(found[name]).view(tensor.dtype) for name, tensor in tensors.items()
    }
