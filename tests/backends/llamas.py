"""A small Llama of transformers, its examples, and precisions in turn: for tests of targets."""

from itertools import cycle
from typing import Any

import pytest
import torch

from mpq.backends.target import Target
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision

transformers = pytest.importorskip("transformers", minversion="5")


def llama(**options: Any) -> Any:
    """Two blocks with random weights."""
    torch.manual_seed(0)
    plain = {
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 160,
    }  # fmt: skip
    config = transformers.LlamaConfig(hidden_size=64, vocab_size=128, **plain | options)
    return transformers.LlamaForCausalLM(config).eval()


def mixtral(**options: Any) -> Any:
    """One block of experts, which transformers keeps in two parameters."""
    torch.manual_seed(0)
    plain = {"num_hidden_layers": 1, "num_local_experts": 2}
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, **plain | options,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).eval()


def examples() -> list[dict[str, torch.Tensor]]:
    """Token ids alone, eight to a batch."""
    draws = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 128, (8, 12), generator=draws)} for _ in range(2)]


def in_turn(model: Any, target: Target, mix: tuple[str, ...]) -> Assignment:
    """One precision after the other; what the target does not hold stays as it came.

    Layers that share a parameter, or that readers fuse, have one precision.
    """
    network, data = Network.of(model, Calibration(examples())), Calibration(examples())
    precisions = [Precision.parse(text) for text in mix]
    ranges = ActivationRanges.calibrate(network, data, precisions, "minmax")
    first = {name: tie[0] for tie in target.ties([x.name for x in network.layers]) for name in tie}
    layers: list[AssignedLayer] = []
    known: dict[str, Precision] = {}
    turns = cycle(precisions)
    for layer in network.layers:
        same = known.get(layer.weight_of or first.get(layer.name, ""))
        wanted = same or next(turns)
        held = wanted == ORIGINAL or not target.refusal(layer, wanted)
        known[layer.name] = precision = wanted if held else ORIGINAL
        # An embedding reads ids, which have no range.
        reads_ids = layer.kind == "embedding"
        ends = None if reads_ids else ranges.of(layer.name, precision.activation)
        layers.append(AssignedLayer(layer.name, layer.kind, layer.weight_shape, precision, ends))
    return Assignment(tuple(layers), weight_range="minmax")
