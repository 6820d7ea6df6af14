"""One layer in one precision, as ONNX nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.backends.onnx.formats import Kernel, kernel_of
from mpq.backends.onnx.graph import InputCodes, Writer
from mpq.errors import ModelError, PrecisionError
from mpq.network.modules import weight_of
from mpq.network.operand import Operand
from mpq.network.tracing import kind_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.codes import Codes, packed
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer

_INT32_HEADROOM = 2.0**30
"""Largest bias in units of the product's scale: it leaves half of int32 for the sum of products."""
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@final
@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer, to be written in one precision.

    Args:
        name: Name of the layer, for messages and scales.
        layer_module: The layer's module, which holds the original weight.
        precision: What it is stored and computed in.
        quantizer: Knows the scales of the layer's weight in every format.
        x: Name of its input: float, but for a ``QDQ`` kernel already rounded to ``codes``.
        output: Name of its output, float.
        codes: How its input is rounded, for a ``QDQ`` kernel.
    """

    name: str
    layer_module: nn.Module
    precision: Precision
    quantizer: Quantizer
    x: str
    output: str
    codes: InputCodes | None

    def write(self, writer: Writer) -> None:
        """Adds the nodes.

        Raises:
            PrecisionError: If there is no kernel for this kind of layer at this precision.
            ModelError: If ONNX has no such layer.
        """
        kernel = None if self.kind is None else kernel_of(self.kind, self.precision)
        if kernel is None:
            raise PrecisionError(
                f"layer {self.name!r}: ONNX has no kernel for a {self.kind} at {self.precision}"
            )
        writes = {
            Kernel.FLOAT: self._write_float,
            Kernel.QDQ: self._write_integers,
            Kernel.NBITS: self._write_nbits,
            Kernel.LOOKUP: self._write_lookup,
        }
        writes[kernel](writer)

    @property
    def kind(self) -> str | None:
        """As in ``Layer``."""
        return kind_of(self.layer_module)

    @property
    def _bias(self) -> Tensor | None:
        bias = getattr(self.layer_module, "bias", None)
        # In float32, as the graph is, whatever the model's dtype.
        return None if bias is None else bias.detach().float().cpu()

    def _write_float(self, writer: Writer) -> None:
        if isinstance(self.layer_module, Operand):
            writer.node("Identity", [self.x], self.output)
            return
        weight = weight_of(self.layer_module).detach().float()
        if isinstance(self.layer_module, nn.Embedding):
            writer.node("Gather", [writer.constant("weight", weight), self.x], self.output)
            return
        bias = None if self._bias is None else writer.constant("bias", self._bias)
        if self.kind == "linear":
            rows = layout_of(self.layer_module).to_rows(weight)
            write_sum(writer, [self.x, writer.constant("weight", rows.t())], bias, self.output)
            return
        operator = "ConvTranspose" if isinstance(self.layer_module, _TRANSPOSED) else "Conv"
        inputs = [self.x, writer.constant("weight", weight), *([bias] if bias else [])]
        writer.node(
            operator, inputs, self.output, convolution_attributes(self.name, self.layer_module)
        )

    def _write_integers(self, writer: Writer) -> None:
        assert self.codes is not None
        rows, scale = self._integer_rows(self.codes.scale)
        bias = None
        if self._bias is not None:
            # A float bias would make ONNX Runtime expand the weight in every run.
            steps = scale * self.codes.scale
            bias = writer.dequantize_rows((self._bias / steps).round().to(torch.int32), steps, 0)
        if self.kind == "linear":
            # Transposed, so that channels are its second axis; a convolution has them first.
            weight = writer.dequantize_rows(rows.t(), scale, 1)
            write_sum(writer, [self.x, weight], bias, self.output)
            return
        weight = writer.dequantize_rows(rows.reshape(weight_of(self.layer_module).shape), scale, 0)
        inputs = [self.x, weight, *([bias] if bias else [])]
        writer.node(
            "Conv", inputs, self.output, convolution_attributes(self.name, self.layer_module)
        )

    def _integer_rows(self, input_scale: float) -> tuple[Tensor, Tensor]:
        """``[O, K]`` int8 and ``[O]`` scales, far enough from 0 for the bias to fit in 32 bits."""
        stored = self._stored(8)
        # One scale per channel, also of a whole weight, as the bias widens some alone.
        rows, scale = stored.integers().float(), stored.scale[:, 0]
        if self._bias is not None:
            # A bias is stored in steps of weight scale times input scale: the smaller these are,
            # the more of them it takes. A negative scale stays one.
            least = self._bias.abs() / (input_scale * _INT32_HEADROOM)
            wide = torch.maximum(scale.abs(), least).copysign(scale)
            narrower = (rows * (scale / wide)[:, None]).round()
            # Channels that fit keep their codes to the bit; all others are rounded once more.
            rows = torch.where((wide != scale)[:, None], narrower, rows)
            scale = wide
        return rows.to(torch.int8), scale

    def _stored(self, bits: int) -> Codes:
        """With positive scales wherever codes of so many bits allow it."""
        found = self.quantizer.codes(self.name, self.layer_module, self.precision.weight)
        return found.turned(bits)

    def _write_nbits(self, writer: Writer) -> None:
        bits, size = self.precision.weight.number.bits, self.precision.weight.group_size
        assert size is not None
        stored = self._stored(bits)
        # Without zero points the operator takes the middle, 2^(bits - 1), for zero.
        blocks = stored.codes.reshape(-1, size) + 2 ** (bits - 1)
        # A block of 16 and more codes of 2 bits and more is whole words.
        stream = packed(blocks, bits).reshape(*stored.scale.shape, -1)
        inputs = [
            self.x,
            writer.constant("packed", stream),
            writer.constant("scales", stored.scale),
        ]
        attributes = {
            # Without the zeros that fill up the last group: the operator knows of those by itself.
            "K": stored.num_inputs,
            "N": len(stored.scale),
            "bits": bits,
            "block_size": size,
            # 1 computes in float32, 4 rounds the input to int8 while running.
            "accuracy_level": 1 if self.precision.activation.is_exact else 4,
        }
        if self._bias is None:
            writer.node("MatMulNBits", inputs, self.output, attributes, "com.microsoft")
            return
        product = writer.node("MatMulNBits", inputs, None, attributes, "com.microsoft")
        writer.node("Add", [product, writer.constant("bias", self._bias)], self.output)

    def _write_lookup(self, writer: Writer) -> None:
        stored = self._stored(8)
        rows = stored.integers().to(torch.int8)
        # Rows first, numbers after: the whole table would otherwise become floats in every run.
        integers = writer.node("Gather", [writer.constant("codes", rows), self.x])
        scales = stored.scale
        steps = writer.node("Gather", [writer.constant("scale", scales), self.x])
        numbers = writer.node("Cast", [integers], attributes={"to": 1})
        writer.node("Mul", [numbers, steps], self.output)


def write_sum(writer: Writer, product: Sequence[str], bias: str | None, output: str) -> None:
    """A product of matrices and, where there is one, a bias."""
    if bias is None:
        writer.node("MatMul", product, output)
        return
    # Not Gemm, which takes matrices only: tokens come as [N, T, C].
    writer.node("Add", [writer.node("MatMul", product), bias], output)


def convolution_attributes(name: str, layer_module: nn.Module) -> dict[str, Any]:
    """Strides, padding and the like, as ONNX has them.

    Raises:
        ModelError: If it pads with other numbers than zeros.
    """
    assert isinstance(layer_module, _CONVOLUTION + _TRANSPOSED)
    # Of all kinds of padding, this one alone is an attribute of the operator.
    if layer_module.padding_mode != "zeros":
        raise ModelError(
            f"layer {name!r} pads with {layer_module.padding_mode!r}; "
            "ONNX convolutions pad with zeros"
        )
    attributes: dict[str, Any] = {
        "strides": list(layer_module.stride),
        "dilations": list(layer_module.dilation),
        "group": layer_module.groups,
        "kernel_shape": list(layer_module.kernel_size),
    }
    if isinstance(layer_module, _TRANSPOSED):
        attributes["output_padding"] = list(layer_module.output_padding)
    return attributes | {"pads": _pads(layer_module)}


def _pads(layer_module: nn.Module) -> list[int]:
    """Padding before, then after, every axis."""
    assert isinstance(layer_module, _CONVOLUTION + _TRANSPOSED)
    # As a word, padding is not one number per axis.
    if layer_module.padding == "valid":
        return [0] * (2 * len(layer_module.kernel_size))
    if layer_module.padding == "same":
        reach = np.array(layer_module.dilation) * (np.array(layer_module.kernel_size) - 1)
        # An odd sum has its larger half at the end, as torch has it.
        return [*(reach // 2).tolist(), *(reach - reach // 2).tolist()]
    return [int(p) for p in layer_module.padding] * 2
