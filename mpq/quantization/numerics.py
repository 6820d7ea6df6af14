"""What a deployment target computes otherwise than mpq does by itself, as options.

No torch here: an assignment states its numerics, and its file is read without torch.
"""

from dataclasses import dataclass
from typing import Final, Literal, final, get_args

from mpq.errors import InputError

ScaleType = Literal["fp32", "fp16", "bf16"]
"""Dtypes that a target stores scales in, where a precision does not say otherwise."""
SymmetricDynamic = Literal["reach", "amax/127.5"]
"""How a dynamic symmetric format finds its scale."""
InputRounding = Literal["reciprocal", "quotient", "rounded-quotient"]
"""How an input becomes integers."""
TensorScale = Literal["power-of-two", "none"]
"""What a weight has beside the fp8 scales of its blocks."""
ScaleSign = Literal["either", "positive"]
"""Signs of scales that a tool reads."""
FloatInputs = Literal["float", "llama.cpp"]
"""What becomes of the inputs of layers whose weight alone is quantized."""


@final
@dataclass(frozen=True)
class Numerics:
    """How numbers are stored and rounded where mpq and the tools that run them differ.

    The defaults are mpq's own. A target states its own, so that what is searched is what is
    shipped: scales are rounded to the dtype that the file stores *before* the codes are computed.

    Args:
        scale: Dtype of the scale of a channel or of a whole weight, unless its precision names one.
        group_scale: Dtype of the scale of a group (fp16, as GPTQ and AWQ store it), likewise.
        symmetric_dynamic: ``reach`` takes the smallest scale at which both ends of a token fit into
            the codes -128 to 127; ``amax/127.5`` is compressed-tensors' and torchao's.
        input_rounding: ``reciprocal`` multiplies with the reciprocal of the scale and adds the zero
            point after rounding, as torch's fake quantization; ``quotient`` divides, adds the zero
            point and cuts to the range before it rounds, as compressed-tensors;
            ``rounded-quotient`` divides, rounds and adds the zero point, as ONNX. They part at
            ties.
        float_inputs: ``llama.cpp`` rounds the inputs of layers with integer and microscaling
            weights to int8 while running, in blocks of 32 numbers, or of 256 where the weight's
            type has super-blocks.
        tensor_scale: Of weights in nvfp4: ``power-of-two`` brings the scales of its blocks into
            fp8's range, exactly; ``none`` leaves small weights to fp8's smallest numbers.
        scale_sign: ``either`` lets a rounding turn the codes of a symmetric format around, which
            reach one further below 0 than above it, by a negative scale; ``positive`` does not.

    Raises:
        InputError: If a field has none of its values.
    """

    scale: ScaleType = "fp32"
    group_scale: ScaleType = "fp16"
    symmetric_dynamic: SymmetricDynamic = "reach"
    input_rounding: InputRounding = "reciprocal"
    float_inputs: FloatInputs = "float"
    tensor_scale: TensorScale = "power-of-two"
    scale_sign: ScaleSign = "either"

    def __post_init__(self) -> None:
        values = {
            "scale": get_args(ScaleType),
            "group_scale": get_args(ScaleType),
            "symmetric_dynamic": get_args(SymmetricDynamic),
            "input_rounding": get_args(InputRounding),
            "float_inputs": get_args(FloatInputs),
            "tensor_scale": get_args(TensorScale),
            "scale_sign": get_args(ScaleSign),
        }
        for name, known in values.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"numerics: {name} is one of {', '.join(known)}; got {getattr(self, name)!r}"
                )


OWN: Final = Numerics()
"""mpq's own."""
