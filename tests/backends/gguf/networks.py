"""Small language models for llama.cpp, their examples and precisions: for its tests."""

from typing import Any

import pytest
import torch

import mpq
from mpq.backends.gguf import Gguf
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment

transformers = pytest.importorskip("transformers")

VOCABULARY = 304
ALL = ("w4", "w2", "w3", "w5", "w6", "w8", "w4g32", "w5g32", "w8g64", "w3g256", "w6t", "w7")


def network(kind: str, hidden: int = 256, inner: int = 512, **more: Any) -> Any:
    """A language model of two blocks with random weights, biases and norms."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY,
        max_position_embeddings=128, initializer_range=0.1, bos_token_id=0, eos_token_id=1,
        pad_token_id=None, **more,
    )  # fmt: skip
    found = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn_like(parameter) * 0.1
    return found


def examples(count: int = 16, length: int = 8) -> Calibration:
    """Random tokens."""
    return Calibration([{"input_ids": torch.randint(2, 300, (count, length))}])


def assigned(model: Any, *precisions: str, target: Gguf | None = None) -> Assignment:
    """The precisions in turn; what the target cannot hold stays as it came."""
    target, layers = target or Gguf(), dict[str, AssignedLayer]()
    for layer in Network.of(model, examples()).layers:
        precision = mpq.Precision.parse(precisions[len(layers) % len(precisions)])
        if target.refusal(layer, precision):
            precision = mpq.Precision.parse("fp32")
        if layer.weight_of:
            precision = layers[layer.weight_of].precision
        layers[layer.name] = AssignedLayer(
            layer.name, layer.kind, layer.weight_shape, precision, None
        )
    return Assignment(tuple(layers.values()), weight_range="minmax")
