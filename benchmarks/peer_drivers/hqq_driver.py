"""Half-quadratic quantization (Badri and Shaji 2023), data-free, by the package ``hqq``.

Groups run on across rows, as the package has them with ``axis=1``. A group has a scale and a zero
point, both in fp16.
"""

import torch
from common import Question, check_levels, grouped_bits
from hqq.core.quantize import Quantizer

SCALE_BITS, ZERO_BITS = 16, 16


def main() -> None:
    """Quantizes every layer's weight by itself."""
    question = Question.given()
    size = question.asked["group_size"]
    found, bits = {}, {}
    for name, weight in question.weights.items():

        def quantized(weight: torch.Tensor = weight) -> tuple[torch.Tensor, dict]:
            return Quantizer.quantize(
                weight, nbits=question.bits, group_size=size, axis=1, device="cpu"
            )

        codes, meta = question.timed(quantized)
        for key in ("scale", "zero"):
            meta[key] = meta[key].to(torch.float16).float()
        found[name] = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
        check_levels(name, found[name].reshape(-1, size), question.bits, None)
        groups = meta["scale"].numel()
        bits[name] = grouped_bits(weight, question.bits, groups, SCALE_BITS + ZERO_BITS)
    question.answer(found, bits, group_size=size, scale_bits=SCALE_BITS, zero_bits=ZERO_BITS)


if __name__ == "__main__":
    main()
