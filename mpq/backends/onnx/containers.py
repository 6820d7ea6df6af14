"""Element types that weights are stored in, in files of standard operators."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import torch
from torch import Tensor

from mpq.errors import MissingDependencyError
from mpq.quantization.codes import packed
from mpq.quantization.tensor_format import TensorFormat

if TYPE_CHECKING:
    import onnx

INTEGER_BITS: Final = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""Bits of a code, and of the place it is stored in."""
FLOATS: Final = {
    "fp8_e4m3": "FLOAT8E4M3FN",
    "fp8_e5m2": "FLOAT8E5M2",
    "fp16": "FLOAT16",
    "bf16": "BFLOAT16",
    "fp32": "FLOAT",
}
OPSETS: Final = {"INT2": 25, "UINT2": 25}
"""The versions of the operators that know a type, where 21, which knows blocks, does not."""
COLUMNS: Final = 4
"""ONNX Runtime 1.32 multiplies with a 2-bit matrix of another number of columns wrongly, without a
word, where it fuses the two (MatMulNBits)."""


@final
@dataclass(frozen=True)
class Container:
    """What one code is stored in.

    Args:
        name: Of the element type, as ONNX calls it.
        bits: Of one element.
    """

    name: str
    bits: int

    @property
    def opset(self) -> int:
        """The version of the operators that it needs."""
        return OPSETS.get(self.name, 21)

    def tensor(self, name: str, values: Tensor) -> "onnx.TensorProto":
        """Codes, or numbers of a floating-point format, as a constant of a file.

        Args:
            name: Of the constant.
            values: Whole numbers that fit, of an integer type; else numbers of the format.

        Raises:
            MissingDependencyError: If the ``onnx`` that is installed does not know the type.
        """
        from onnx import TensorProto

        if not hasattr(TensorProto, self.name):
            raise MissingDependencyError(
                f"this version of onnx has no {self.name}: pip install -U 'mpq[onnx]'"
            )
        made = TensorProto(name=name, data_type=getattr(TensorProto, self.name))
        made.dims.extend(values.shape)
        made.raw_data = self._bytes(values.detach().cpu().contiguous())
        return made

    def _bytes(self, values: Tensor) -> bytes:
        if "INT" in self.name:
            # As two's complement; the first code in the lowest bits, without a row's own end.
            codes = values.to(torch.int32).reshape(1, -1) & (2**self.bits - 1)
            stream = packed(codes, self.bits)[0, : -(-codes.numel() * self.bits // 8)]
            return stream.numpy().tobytes()
        dtype = {
            "FLOAT8E4M3FN": torch.float8_e4m3fn,
            "FLOAT8E5M2": torch.float8_e5m2,
            "FLOAT16": torch.float16,
            "BFLOAT16": torch.bfloat16,
            "FLOAT": torch.float32,
        }[self.name]
        return values.to(dtype).reshape(-1).view(torch.uint8).numpy().tobytes()


def container_of(
    tensor_format: TensorFormat, kind: str, num_channels: int, narrowest: int = 2
) -> Container | None:
    """What a weight's codes are stored in; ``None`` where nothing holds them.

    Args:
        tensor_format: Of a weight that does not stay as it came.
        kind: The layer's.
        num_channels: Its outputs.
        narrowest: Bits that an integer code takes at least.

    >>> from mpq.quantization.precision import Precision
    >>> container_of(Precision.parse("w3z").weight, "linear", 10)
    Container(name='UINT4', bits=4)
    """
    number = tensor_format.number
    if number.is_float:
        name = FLOATS.get(number.name)
        return None if name is None else Container(name, number.bits)
    bits = INTEGER_BITS.get(number.bits)
    if bits is None:
        return None
    if bits == 2 and kind == "linear" and num_channels % COLUMNS:
        bits = 4
    bits = max(bits, narrowest)
    return Container(f"{'' if tensor_format.symmetric else 'U'}INT{bits}", bits)
