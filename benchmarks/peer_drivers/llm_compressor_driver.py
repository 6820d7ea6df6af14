"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) by the package ``llmcompressor``, with its defaults.

Symmetric, activation order that keeps groups where they are, damping of 1 %, layers in order.
"""

import datasets
from common import Question, check_levels, grouped_bits
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier

GROUP_SCALE_BITS, CHANNEL_SCALE_BITS = 16, 32


def main() -> None:
    """Quantizes the linear layers of all blocks."""
    question = Question.given()
    sizes = {name: question.group_size(name) for name in question.layers}
    model = question.network()
    inputs = question.inputs
    data = datasets.Dataset.from_dict(
        {"input_ids": inputs.tolist(), "attention_mask": (inputs >= 0).long().tolist()}
    )
    recipe = GPTQModifier(
        config_groups={
            str(size): QuantizationScheme(
                targets=[name for name, own in sizes.items() if own == size],
                weights=QuantizationArgs(
                    num_bits=question.bits,
                    symmetric=True,
                    strategy="channel" if size is None else "group",
                    group_size=size,
                ),
            )
            for size in set(sizes.values())
        }
    )
    question.timed(
        lambda: oneshot(
            model=model,
            dataset=data,
            recipe=recipe,
            num_calibration_samples=len(inputs),
            max_seq_length=inputs.shape[1],
            pipeline="sequential",
        )
    )
    modules = dict(model.named_modules())
    found = {name: modules[name].weight for name in question.layers}
    for name, weight in found.items():
        check_levels(name, weight, question.bits, sizes[name])
    bits = {
        name: grouped_bits(
            weight,
            question.bits,
            weight.shape[0] * (weight.shape[1] // sizes[name] if sizes[name] else 1),
            GROUP_SCALE_BITS if sizes[name] else CHANNEL_SCALE_BITS,
        )
        for name, weight in found.items()
    }
    question.answer(found, bits, model)


if __name__ == "__main__":
    main()
