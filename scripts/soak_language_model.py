"""A language model of a few weights, for the targets that ``scripts.soak`` can give no other."""

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

VOCABULARY: Final = 304
TOKENIZER: Final = "tokenizer"
"""Beside the folders of all rounds."""


def make_model() -> Any:
    """One block of a Llama; rows of whole blocks of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def examples() -> list[dict[str, Tensor]]:
    """Two batches of token ids."""
    draws = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, VOCABULARY, (2, 8), generator=draws)} for _ in range(2)]


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer, which a file of llama.cpp holds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(["Once upon a time there was a little girl"] * 3, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
