"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) by the package ``gptqmodel``, with its defaults.

Symmetric, ``desc_act`` and damping as the package has them. Its kernels pack whole words of 32
inputs. Numbers are those that its own modules decode their codes to.
"""

from common import Question, grouped_bits
from gptqmodel import GPTQModel, QuantizeConfig

GROUP_SCALE_BITS = 16


def main() -> None:
    """Quantizes the linear layers of all blocks."""
    question = Question.given()
    size = question.asked["group_size"]
    left = {f"-:.*{end}.*": {} for end in question.asked.get("left", ())}
    config = QuantizeConfig(bits=question.bits, group_size=size, dynamic=left or None)
    model = GPTQModel.load(str(question.folder / "network"), config, device="cpu")
    examples = [{"input_ids": row, "attention_mask": (row >= 0).long()} for row in question.inputs]
    question.timed(lambda: model.quantize(examples, batch_size=1))
    modules = dict(model.model.named_modules())
    found, bits = {}, {}
    for name in question.layers:
        print(name, type(modules[name]))
        weight = modules[name].dequantize_weight().T
        found[name] = weight
        groups = weight.shape[0] * (weight.shape[1] // size)
        bits[name] = grouped_bits(weight, question.bits, groups, GROUP_SCALE_BITS)
    question.answer(found, bits, model.model)


if __name__ == "__main__":
    main()
