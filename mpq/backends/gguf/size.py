"""How large a GGUF file is going to be, to the byte: its header is written without tensors."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from mpq.backends.file_size import FileSize
from mpq.backends.gguf.runtime import FILE
from mpq.backends.target import LayerShape
from mpq.quantization.precision import Precision

BeginsFile = Callable[[Path], Any]
"""Gives a ``gguf.GGUFWriter`` of a file, with all keys and values."""


def gguf_size(
    begins: BeginsFile,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    own: Collection[str],
    stays: Callable[[Tensor], int],
    stored_bits: Callable[[LayerShape, Precision], int],
) -> FileSize:
    """The whole file: keys, values and vocabulary, what it says of its tensors, and these, aligned.

    Exact: a tensor's type and place take the same bytes in the header whatever they are.

    Args:
        begins: See ``BeginsFile``.
        tensors: All that the file has, by our names.
        names: The file's names by ours.
        own: Our names of the weights that are counted by themselves.
        stays: Bytes of a tensor that is not quantized.
        stored_bits: Of a quantized weight.
    """
    with TemporaryDirectory(prefix="mpq-gguf-") as place:
        writer = begins(Path(place, FILE))
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            # The dtype says nothing here: of every type a tensor is told in as many bytes.
            writer.add_tensor_info(names[name], shape, np.dtype(np.float32), 4 * tensor.numel())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = Path(place, FILE).stat().st_size
    alignment = int(writer.data_alignment)

    def padded(num_bytes: int) -> int:
        return -(-num_bytes // alignment) * alignment

    def layer_bytes(layer: LayerShape, precision: Precision) -> int:
        tensor = tensors.get(f"{layer.name}.weight")
        if tensor is None:
            return 0  # a head that is the embedding, which llama.cpp knows
        if precision.weight.is_exact:
            return padded(stays(tensor))
        return padded(stored_bits(layer, precision) // 8)

    rest = (tensor for name, tensor in tensors.items() if name not in own)
    return FileSize(padded(header) + sum(padded(stays(t)) for t in rest), layer_bytes)
