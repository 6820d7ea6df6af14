"""What the drivers share: the question, the network, the clock and the answer.

Runs in a peer's environment, which has torch and safetensors, and no mpq.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Value = TypeVar("Value")
SHOWN = 8
"""Examples whose outputs are compared."""


class Question:
    """What ``peers.py`` asks, in a folder.

    Args:
        folder: With ``asked.json``, ``float.safetensors`` and ``calibration.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: dict[str, Any] = json.loads((folder / "asked.json").read_text("utf-8"))
        self.layers: list[str] = self.asked["layers"]
        self.bits: int = self.asked["bits"]
        self._seconds = 0.0
        torch.set_num_threads(1)
        torch.manual_seed(self.asked["seed"])

    @classmethod
    def given(cls) -> "Question":
        """By the command line's only argument."""
        return cls(Path(sys.argv[1]))

    @property
    def weights(self) -> dict[str, Tensor]:
        """Layer to its weight in float, BatchNorm folded."""
        return load_file(self.folder / "float.safetensors")

    @property
    def inputs(self) -> Tensor:
        """Of all calibration examples."""
        return load_file(self.folder / "calibration.safetensors")["inputs"]

    def group_size(self, name: str) -> int | None:
        """Weights that share a scale in a layer; ``None``: all of a channel."""
        asked = self.asked
        is_per_channel = any(name.endswith(end) for end in asked.get("per_channel", ()))
        found: int | None = None if is_per_channel else asked["group_size"]
        return found

    def network(self) -> nn.Module:
        """The trained network: by the example's file, or as transformers loads it."""
        if "example" not in self.asked:
            import transformers

            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                self.folder / "network", dtype=torch.float32
            )
            return loaded.eval()
        spec = importlib.util.spec_from_file_location("example", self.asked["example"])
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["example"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model: nn.Module = module.make_net()
        model.load_state_dict(load_file(self.asked["weights"]))
        return model

    def timed(self, call: Callable[[], Value]) -> Value:
        """What a call of the peer gives; its processor time is added up."""
        start = time.process_time()
        found = call()
        self._seconds += time.process_time() - start
        return found

    def answer(
        self,
        tensors: Mapping[str, Tensor],
        bits: Mapping[str, int],
        quantized: Callable[[Tensor], Any] | None = None,
        **more: Any,
    ) -> None:
        """Writes what was found.

        Args:
            tensors: Layer to the numbers that its codes stand for; ``LAYER.bias``: its bias.
            bits: Layer to the bits of its codes, scales and zero points.
            quantized: The peer's own network, for its outputs on the first examples.
            more: What else belongs into the row.
        """
        found = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
        if quantized is not None:
            with torch.no_grad():
                outputs = quantized(self.inputs[:SHOWN])
            logits = outputs if isinstance(outputs, Tensor) else outputs.logits
            found["outputs"] = logits.float().contiguous()
        save_file(found, self.folder / "weights.safetensors")
        told = {"processor_seconds": self._seconds, "bits": dict(bits), "more": more}
        (self.folder / "told.json").write_text(json.dumps(told), "utf-8")


def check_levels(name: str, weight: Tensor, bits: int, size: int | None) -> None:
    """Whether a package did what it was asked for: no group has more numbers than codes.

    Args:
        name: The layer's.
        weight: ``[O, ...]`` the numbers that codes stand for.
        bits: Of a code.
        size: Consecutive weights of a channel with one scale; ``None``: all of them.

    Raises:
        ValueError: If a group has more.
    """
    rows = weight.detach().float().flatten(1)
    most = max(
        len(group.unique()) for part in rows.split(size or rows.shape[1], 1) for group in part
    )
    if most > 2**bits:
        raise ValueError(f"{name}: {most} numbers in a group, where {bits} bits have {2**bits}")


def grouped_bits(weight: Tensor, bits: int, groups: int, bits_per_group: int) -> int:
    """Bits of codes, and of all that each of the groups has."""
    return weight.numel() * bits + groups * bits_per_group
