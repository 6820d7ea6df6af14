"""One layer in one precision, as ONNX nodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpq.backends.onnx.formats import Kernel, kernel_of
from mpq.backends.onnx.graph import Codes, Writer
from mpq.errors import ModelError, PrecisionError
from mpq.model import weight_of
from mpq.precision import Precision
from mpq.quantization import Quantizer
from mpq.trace import kind_of
from mpq.weight_layout import layout_of

_INT32_HEADROOM = 2.0**30
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def write_layer(
    writer: Writer,
    name: str,
    site: nn.Module,
    precision: Precision,
    quantizer: Quantizer,
    x: str,
    output: str,
    codes: Codes | None,
) -> None:
    """Writes one call of a layer.

    Args:
        writer: Collects the nodes.
        name: The layer.
        site: Its module.
        precision: What it is stored and computed in.
        quantizer: Knows the weight's scales.
        x: Name of its input: float, but for a ``QDQ`` kernel already rounded to ``codes``.
        output: Name of its output, float.
        codes: How its input is rounded, for a ``QDQ`` kernel.

    Raises:
        PrecisionError: If there is no kernel for this kind of layer at this precision.
        ModelError: If ONNX has no such layer.
    """
    kind = kind_of(site)
    kernel = None if kind is None else kernel_of(kind, precision)
    if kernel is None:
        raise PrecisionError(f"layer {name!r}: ONNX has no kernel for a {kind} at {precision}")
    if kernel is Kernel.NBITS:
        _write_nbits(writer, name, site, precision, quantizer, x, output)
    elif kernel is Kernel.LOOKUP:
        _write_lookup(writer, name, site, precision, quantizer, x, output)
    elif kernel is Kernel.QDQ:
        assert codes is not None
        _write_integers(writer, name, site, precision, quantizer, x, output, codes)
    else:
        _write_float(writer, name, site, x, output)


def _write_float(writer: Writer, name: str, site: nn.Module, x: str, output: str) -> None:
    weight = weight_of(site).detach().float()
    if isinstance(site, nn.Embedding):
        writer.node("Gather", [writer.constant("weight", weight), x], output)
        return
    bias = _bias(site)
    if kind_of(site) == "linear":
        rows = layout_of(site).to_rows(weight)
        product = [x, writer.constant("weight", rows.t())]
        constant = None if bias is None else writer.constant("bias", bias)
        _write_sum(writer, product, constant, output)
        return
    operator = "ConvTranspose" if isinstance(site, _TRANSPOSED) else "Conv"
    inputs = [x, writer.constant("weight", weight)]
    inputs += [] if bias is None else [writer.constant("bias", bias)]
    writer.node(operator, inputs, output, _convolution(name, site))


def _write_integers(
    writer: Writer,
    name: str,
    site: nn.Module,
    precision: Precision,
    quantizer: Quantizer,
    x: str,
    output: str,
    codes: Codes,
) -> None:
    rows, scale = _integer_rows(name, site, precision, quantizer, codes.scale)
    bias = _bias(site)
    integer_bias = None
    if bias is not None:
        steps = scale * codes.scale
        integer_bias = writer.dequantize_rows((bias / steps).round().to(torch.int32), steps, 0)
    if kind_of(site) == "linear":
        weight = writer.dequantize_rows(rows.t(), scale, 1)
        _write_sum(writer, [x, weight], integer_bias, output)
        return
    weight = writer.dequantize_rows(rows.reshape(weight_of(site).shape), scale, 0)
    inputs = [x, weight, *([] if integer_bias is None else [integer_bias])]
    writer.node("Conv", inputs, output, _convolution(name, site))


def _write_sum(writer: Writer, product: Sequence[str], bias: str | None, output: str) -> None:
    if bias is None:
        writer.node("MatMul", product, output)
        return
    writer.node("Add", [writer.node("MatMul", product), bias], output)


def _integer_rows(
    name: str, site: nn.Module, precision: Precision, quantizer: Quantizer, input_scale: float
) -> tuple[Tensor, Tensor]:
    """``[O, K]`` int8 and ``[O]`` scales, large enough for the bias to fit into 32 bits."""
    codes, scale = quantizer.codes(name, site, precision.weight)
    rows = codes.reshape(layout_of(site).to_rows(weight_of(site)).shape)
    scale = scale.expand(len(rows)).clone()
    bias = _bias(site)
    if bias is not None:
        wide = torch.maximum(scale, bias.abs() / (input_scale * _INT32_HEADROOM))
        rows = torch.where((wide > scale)[:, None], (rows * (scale / wide)[:, None]).round(), rows)
        scale = wide
    return rows.to(torch.int8), scale


def _write_nbits(
    writer: Writer,
    name: str,
    site: nn.Module,
    precision: Precision,
    quantizer: Quantizer,
    x: str,
    output: str,
) -> None:
    bits, size = precision.weight.number.bits, precision.weight.group_size
    assert size is not None
    num_outputs, num_inputs = layout_of(site).to_rows(weight_of(site)).shape
    codes, scale = quantizer.codes(name, site, precision.weight)
    blocks = codes.reshape(num_outputs, -1, size).to(torch.int32) + 2 ** (bits - 1)
    inputs = [
        x,
        writer.constant("packed", _packed(blocks, bits)),
        writer.constant("scales", scale.reshape(num_outputs, -1).float()),
    ]
    attributes = {
        "K": num_inputs,
        "N": num_outputs,
        "bits": bits,
        "block_size": size,
        "accuracy_level": 1 if precision.activation.is_exact else 4,
    }
    bias = _bias(site)
    if bias is None:
        writer.node("MatMulNBits", inputs, output, attributes, "com.microsoft")
        return
    product = writer.node("MatMulNBits", inputs, None, attributes, "com.microsoft")
    writer.node("Add", [product, writer.constant("bias", bias)], output)


def _packed(blocks: Tensor, bits: int) -> Tensor:
    """``[O, blocks, size]`` codes from 0 as bytes, the first code in the lowest bits."""
    each = 8 // bits
    shaped = blocks.reshape(*blocks.shape[:2], -1, each)
    shifts = torch.arange(each, dtype=torch.int32) * bits
    return (shaped << shifts).sum(-1).to(torch.uint8)


def _write_lookup(
    writer: Writer,
    name: str,
    site: nn.Module,
    precision: Precision,
    quantizer: Quantizer,
    x: str,
    output: str,
) -> None:
    codes, scale = quantizer.codes(name, site, precision.weight)
    rows = codes.reshape(weight_of(site).shape).to(torch.int8)
    integers = writer.node("Gather", [writer.constant("codes", rows), x])
    scales = scale.expand(len(rows)).reshape(-1, 1).float()
    steps = writer.node("Gather", [writer.constant("scale", scales), x])
    numbers = writer.node("Cast", [integers], attributes={"to": 1})
    writer.node("Mul", [numbers, steps], output)


def _bias(site: nn.Module) -> Tensor | None:
    bias = getattr(site, "bias", None)
    return None if bias is None else bias.detach().float().cpu()


def _convolution(name: str, site: nn.Module) -> dict[str, Any]:
    assert isinstance(site, _CONVOLUTION + _TRANSPOSED)
    if site.padding_mode != "zeros":
        raise ModelError(
            f"layer {name!r} pads with {site.padding_mode!r}; ONNX convolutions pad with zeros"
        )
    attributes: dict[str, Any] = {
        "strides": list(site.stride),
        "dilations": list(site.dilation),
        "group": site.groups,
        "kernel_shape": list(site.kernel_size),
    }
    if isinstance(site, _TRANSPOSED):
        attributes["output_padding"] = list(site.output_padding)
    return attributes | {"pads": _pads(site)}


def _pads(site: nn.Module) -> list[int]:
    """Padding before, then after, every axis."""
    assert isinstance(site, _CONVOLUTION + _TRANSPOSED)
    if site.padding == "valid":
        return [0] * (2 * len(site.kernel_size))
    if site.padding == "same":
        reach = np.array(site.dilation) * (np.array(site.kernel_size) - 1)
        return [*(reach // 2).tolist(), *(reach - reach // 2).tolist()]
    return [int(p) for p in site.padding] * 2
