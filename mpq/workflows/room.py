"""Whether rounded weights of a whole network fit beside its own."""

from collections import Counter

import torch

from mpq._support.bounds import machine_bytes
from mpq._support.pages import can_stream, is_streaming
from mpq.network.mapped import resident_bytes
from mpq.network.network import Network


def rounds_in_calls(network: Network) -> bool:
    """Whether a measurement rounds weights in every call anew, a layer at a time.

    The numbers are the same, and it takes longer, with every batch: so are networks measured that
    are streamed, and those whose rounded weights do not fit into what is left of a memory.
    """
    needed = Counter[torch.device]()
    for layer in network.layers:
        weight = network.weight(layer.name)
        needed[weight.device] += weight.numel() * weight.element_size()
    return is_streaming() or any(n > _left_bytes(device) for device, n in needed.items())


def _left_bytes(device: torch.device) -> float:
    """Of a device's memory; infinite where nobody says."""
    if device.type == "cuda":
        # What torch holds and does not use is free as well.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "cpu" and can_stream():
        return machine_bytes() - resident_bytes()
    return float("inf")
