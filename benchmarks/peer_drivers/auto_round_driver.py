"""SignRound (Cheng et al. 2023, arXiv:2309.05516) by the package ``auto-round``, with its defaults.

200 steps of signed gradient descent on each block's outputs; batches of 8. Numbers are those that
its fake-quantized network has.
"""

import torch
from auto_round import AutoRound
from common import Question, check_levels, grouped_bits

SCALE_BITS = 16


def main() -> None:
    """Quantizes the linear layers of all blocks."""
    import transformers

    question = Question.given()
    size, is_symmetric = question.asked["group_size"], question.asked["symmetric"]
    model = question.network()
    tokenizer = transformers.AutoTokenizer.from_pretrained(question.folder / "network")
    inputs = question.inputs
    examples = [{"input_ids": row[None]} for row in inputs]
    rounder = AutoRound(
        model,
        tokenizer=tokenizer,
        bits=question.bits,
        group_size=size,
        sym=is_symmetric,
        dataset=examples,
        nsamples=len(inputs),
        seqlen=inputs.shape[1],
        seed=question.asked["seed"],
        device_map="cpu",
        amp=False,
    )
    quantized, _ = question.timed(rounder.quantize)
    modules = dict(quantized.named_modules())
    found, bits = {}, {}
    for name in question.layers:
        weight = modules[name].weight
        found[name] = weight
        check_levels(name, weight, question.bits, size)
        groups = weight.shape[0] * -(-weight.shape[1] // size)  # the last one may be short
        zero_bits = 0 if is_symmetric else question.bits
        bits[name] = grouped_bits(weight, question.bits, groups, SCALE_BITS + zero_bits)
    question.answer(found, bits, quantized.float())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
