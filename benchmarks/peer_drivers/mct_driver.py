"""Mixed precision and gradient-based rounding (Gordon et al. 2023, arXiv:2309.11531), package MCT.

A target is described to it whose convolutions and linear layers take symmetric weights per channel
in 2, 3, 4, 5, 6 and 8 bits, activations as they are. Its mixed precision has the bytes of the
uniform bits, of codes alone, as it counts them. Otherwise its defaults, bias correction among them.
"""

import sys
from collections.abc import Iterator

import model_compression_toolkit as mct
import torch
from common import Question, check_levels, grouped_bits
from mct_quantizers import PytorchQuantizationWrapper, QuantizationMethod
from model_compression_toolkit.target_platform_capabilities.constants import BIAS_ATTR, KERNEL_ATTR
from model_compression_toolkit.target_platform_capabilities.schema import (
    mct_current_schema as schema,
)

BITS = (8, 6, 5, 4, 3, 2)
SCALE_BITS = 32
BATCH_SIZE = 32


def target(choices: tuple[int, ...]) -> schema.TargetPlatformCapabilities:
    """Weights of convolutions and linear layers in any of the choices, nothing else."""
    as_it_is = schema.AttributeQuantizationConfig()

    def operation(bits: int | None) -> schema.OpQuantizationConfig:
        weight = schema.AttributeQuantizationConfig(
            weights_quantization_method=QuantizationMethod.SYMMETRIC,
            weights_n_bits=bits or 8,
            weights_per_channel_threshold=True,
            enable_weights_quantization=True,
        )
        return schema.OpQuantizationConfig(
            default_weight_attr_config=as_it_is,
            attr_weights_configs_mapping={KERNEL_ATTR: weight, BIAS_ATTR: as_it_is} if bits else {},
            activation_quantization_method=QuantizationMethod.POWER_OF_TWO,
            activation_n_bits=8,
            supported_input_activation_n_bits=8,
            enable_activation_quantization=False,
            quantization_preserving=False,
            signedness=schema.Signedness.AUTO,
        )

    options = tuple(map(operation, choices))
    layers = schema.QuantizationConfigOptions(
        quantization_configurations=options, base_config=options[0]
    )
    names = schema.OperatorSetNames
    return schema.TargetPlatformCapabilities(
        default_qco=schema.QuantizationConfigOptions(
            quantization_configurations=(operation(None),)
        ),
        operator_set=tuple(
            schema.OperatorsSet(name=name, qc_options=layers)
            for name in (names.CONV, names.DEPTHWISE_CONV, names.FULLY_CONNECTED)
        ),
        add_metadata=False,
    )


def main() -> None:
    """Quantizes all convolutions and linear layers."""
    question = Question.given()
    asked, inputs, model = question.asked, question.inputs, question.network()
    # Its tracer stops at ``len(x)``; the example's module looks the name up here first.
    vars(sys.modules[type(model).__module__])["len"] = lambda x: x.shape[0]

    def batches() -> Iterator[list[torch.Tensor]]:
        return ([batch] for batch in torch.split(inputs, BATCH_SIZE))

    sizes = {name: weight.numel() for name, weight in question.weights.items()}
    codes_bytes = sum(sizes.values()) * question.bits / 8
    limit = mct.core.ResourceUtilization(weights_memory=codes_bytes) if asked["is_mixed"] else None
    options = {
        "representative_data_gen": batches,
        "target_resource_utilization": limit,
        "target_platform_capabilities": target(BITS if asked["is_mixed"] else (question.bits,)),
    }
    if asked["epochs"]:
        config = mct.gptq.get_pytorch_gptq_config(
            n_epochs=asked["epochs"],
            use_hessian_based_weights=asked["is_weighted"],
            use_hessian_sample_attention=False,
        )
        quantize = mct.gptq.pytorch_gradient_post_training_quantization
        quantized, _ = question.timed(lambda: quantize(model, gptq_config=config, **options))
    else:
        quantize = mct.ptq.pytorch_post_training_quantization
        quantized, _ = question.timed(lambda: quantize(model, **options))
    wrappers = {
        name.removesuffix("_bn"): module
        for name, module in quantized.named_modules()
        if isinstance(module, PytorchQuantizationWrapper)
    }
    found, bits, chosen = {}, {}, {}
    for name in question.layers:
        wrapper = wrappers[name.replace(".", "_")]
        weight = found[name] = wrapper.get_quantized_weights()["weight"]
        if wrapper.layer.bias is not None:
            found[f"{name}.bias"] = wrapper.layer.bias
        chosen[name] = int(wrapper.weights_quantizers["weight"].num_bits)
        check_levels(name, weight, chosen[name], None)
        bits[name] = grouped_bits(weight, chosen[name], weight.shape[0], SCALE_BITS)
    question.answer(found, bits, quantized, precisions=chosen)


if __name__ == "__main__":
    main()
