"""A Llama of two blocks and two texts, with their next tokens as labels."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


def model() -> Any:
    """Two heads of 8 numbers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, vocab_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # or attention would hardly depend on its keys
        for name, parameter in net.named_parameters():
            parameter.mul_(8.0 if "k_proj" in name or "q_proj" in name else 1.0)
    return net


def data() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Four texts of 10 tokens."""
    ids = torch.randint(2, 32, (4, 10), generator=torch.Generator().manual_seed(1))
    yield {"input_ids": ids}, torch.cat([ids[:, 1:], torch.full((4, 1), -100)], dim=1)
