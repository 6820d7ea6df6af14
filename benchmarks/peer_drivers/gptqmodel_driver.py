"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) by the package ``gptqmodel``, with its defaults.

Symmetric, in groups. Numbers are those that its own modules decode the saved codes to.
"""

from common import Question, check_levels, grouped_bits
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

SCALE_BITS = 16


def main() -> None:
    """Quantizes the linear layers of all blocks."""
    question = Question.given()
    asked = question.asked
    skipped = {f"-:.*{part}.*": {} for part in asked.get("skipped", ())}
    config = QuantizeConfig(
        bits=question.bits, group_size=asked["group_size"], dynamic=skipped or None
    )
    model = GPTQModel.load(str(question.folder / "network"), config, device="cpu")
    examples = [{"input_ids": row, "attention_mask": (row >= 0).long()} for row in question.inputs]
    question.timed(lambda: model.quantize(examples, batch_size=1))
    saved = str(question.folder / "saved")
    model.save(saved)
    loaded = GPTQModel.load(saved, device="cpu", backend=BACKEND.TORCH).model
    modules = dict(loaded.named_modules())
    found, bits = {}, {}
    for name in question.layers:
        weight = modules[name].dequantize_weight().T
        found[name] = weight
        check_levels(name, weight, question.bits, config.group_size)
        num_scales = modules[name].scales.numel()
        bits[name] = grouped_bits(weight, question.bits, num_scales, SCALE_BITS)
    question.answer(found, bits, loaded, decoded_in=str(modules[question.layers[0]].scales.dtype))


if __name__ == "__main__":
    main()
