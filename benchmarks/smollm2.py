"""SmolLM2-135M-Instruct and text to measure it on, for `benchmarks/deployment.py`.

Weights and texts are not a part of this project: they come from `loaders.py`. Its weights
came as Q4_1 (blocks of 32): they lie on a grid of 4 bits.
"""

from collections.abc import Iterator
from typing import Any

from loaders import loader

NUM_TOKENS = 32
"""Of a sequence: few and short, so that one core takes minutes."""


def make_net() -> Any:
    """134.5 M parameters, float32, the head tied to the embedding."""
    return loader("smollm2").model()


def calibration() -> Iterator[dict[str, Any]]:
    """Four sequences of WikiText-2's validation text, in one batch: a pass over it takes long."""
    yield from ({"input_ids": ids} for ids in loader("smollm2").calibration(4, NUM_TOKENS, 4))


def held_out() -> Iterator[dict[str, Any]]:
    """Eight sequences of its test text."""
    yield from ({"input_ids": ids} for ids in loader("smollm2").held_out(8, NUM_TOKENS, 4))


def save_tokenizer(folder: str) -> None:
    """A folder of transformers with its byte-level BPE of 49,152 tokens."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=loader("smollm2").tokenizer(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    ).save_pretrained(folder)
