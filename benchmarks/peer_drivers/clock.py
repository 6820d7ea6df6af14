"""What the drivers of ``scale_peers.py`` share: the question, and what a call takes.

Runs in a peer's environment, which has torch, transformers and safetensors, and no mpq; our own
search is clocked by the same functions.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Asked:
    """What ``scale_peers.py`` asks, in a folder.

    Args:
        folder: With ``asked.json``, ``tokens.safetensors`` and ``network``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options: dict[str, Any] = json.loads((folder / "asked.json").read_text("utf-8"))
        torch.set_num_threads(1)
        torch.manual_seed(0)

    def network(self) -> nn.Module:
        """In float32."""
        import transformers

        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder / "network", dtype=torch.float32
        )
        return model.eval()

    @property
    def tokens(self) -> Tensor:
        """``[N, T]``."""
        return load_file(self.folder / "tokens.safetensors")["input_ids"]

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        """Of the tokens."""
        return [{"input_ids": part} for part in self.tokens.split(self.options["batch"])]


def cost(call: Callable[[], object]) -> dict[str, Any]:
    """Processor seconds and the peak of this process; a driver prints it as its last line."""
    loaded, start = peak_bytes(), time.process_time()
    call()
    seconds = time.process_time() - start
    return {
        "cpu_seconds": round(seconds, 2),
        "peak_bytes": peak_bytes(),
        "loaded_bytes": loaded,
    }


def peak_bytes() -> int:
    """Of this process alone: ``ru_maxrss`` is never below what its parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
