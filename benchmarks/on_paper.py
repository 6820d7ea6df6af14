"""What a search would take of networks that were not run: formulas and measured constants.

    python benchmarks/on_paper.py > benchmarks/on_paper.json

Llama 3.1 405B (Dubey et al. 2024, arXiv:2407.21783) and DeepSeek-V3 671B (Liu et al. 2024,
arXiv:2412.19437), shapes as published, in bf16, streamed (docs/scaling.md) on a node of eight
accelerators of 80 GB: 512 calibration and 128 held-out sequences of 2048 tokens in batches of two,
six weight formats in groups of 128, to nearest. Nothing here was run. Measured are the seconds of
ranges for a weight and a format (``scale.json``, one core); taken from datasheets are ``RATES``, of
which ``SHARE`` is reckoned to be reached. Products of a weight's gradient count as many operations
as a forward pass has; a block is run twice in a pass with gradients.

``machine`` says what fits into a machine of 24 GiB without an accelerator, in memory and streamed:
what a search holds whatever the data are, and how many tokens of a batch fit into the rest. Llama
3.1 8B and 70B, and Gemma 2 9B (Gemma Team 2024, arXiv:2408.00118).
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

FORMATS: Final = 6
GROUP: Final = 128
BYTES: Final = 2
"""Of a number in bf16."""
SCALE: Final = 4
"""Bytes of a group's scale in a format."""
ANSWER: Final = 40
"""Bytes of a word of the vocabulary at a token, while answers are compared."""
TOKENS: Final = 2048
CALIBRATION, HELD_OUT, BATCH = 512, 128, 2
RATES: Final = {
    "accelerators": 8,
    "operations_per_s": 989e12,  # H100 SXM, bf16 without sparsity
    "bytes_per_s": 64e9,  # PCIe 5.0 x16 from the host, for each
    "host_cores": 128,
}
SHARE: Final = 0.4


@dataclass(frozen=True)
class Shape:
    """A decoder.

    Args:
        weights: All of them.
        active: That one token is multiplied with.
        largest: Numbers of the largest weight that is a layer of its own.
        blocks: Decoder blocks.
        hidden: Numbers of a token between blocks.
        vocabulary: Words.
    """

    weights: float
    active: float
    largest: float
    blocks: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Machine:
    """One without an accelerator.

    Args:
        memory: Bytes that it has.
        libraries: Bytes of the process before the network is there (``streaming.json``).
    """

    memory: float
    libraries: float

    def fitting(self, shape: Shape, inner: int) -> dict[str, Any]:
        """Of one network, in memory with a rounded weight at a time, and streamed.

        Args:
            shape: Its.
            inner: Numbers of a token within a block's feed-forward network.
        """
        scales = SCALE * shape.weights * FORMATS / GROUP
        # Read and written in a block: six times what is between blocks, five times what is within.
        kept = BYTES * (6 * shape.hidden + 5 * inner)
        answers = ANSWER * shape.vocabulary
        in_memory = self.libraries + BYTES * (shape.weights + shape.largest) + scales
        streamed = self.libraries + 2 * BYTES * shape.largest + scales
        between = BYTES * shape.hidden * shape.blocks
        return {
            **asdict(shape),
            "in_memory": self._row(in_memory, kept * shape.blocks + answers),
            "streamed": self._row(streamed, between + kept + answers),
        }

    def most_weights(self, largest: float, by_token: float, tokens: int) -> float:
        """Of a network in memory whose batches of so many tokens fit beside it."""
        rest = self.memory - self.libraries - BYTES * largest - tokens * by_token
        return rest / (BYTES + SCALE * FORMATS / GROUP)

    def _row(self, held: float, by_token: float) -> dict[str, float]:
        rest = self.memory - held
        return {"bytes": held, "bytes_by_token": by_token, "tokens": max(0, int(rest / by_token))}


SHAPES: Final = {
    "Llama 3.1 405B": Shape(405.9e9, 405.9e9, 128256 * 16384, 126, 16384, 128256),
    "DeepSeek-V3 671B": Shape(671e9, 37e9, 129280 * 7168, 61, 7168, 129280),
}

LLAMA_8B: Final = Shape(8.03e9, 8.03e9, 128256 * 4096, 32, 4096, 128256)
SMALLER: Final = {
    "Llama 3.1 8B": (LLAMA_8B, 14336),
    "Gemma 2 9B": (Shape(9.24e9, 9.24e9, 256000 * 3584, 42, 3584, 256000), 14336),
    "Llama 3.1 70B": (Shape(70.6e9, 70.6e9, 128256 * 8192, 80, 8192, 128256), 28672),
}


def main() -> None:
    streaming = json.loads((Path(__file__).parent / "streaming.json").read_text("utf-8"))
    libraries = streaming["found"]["1.1B"]["streamed"]["loaded_bytes"]
    machine = Machine(24 * 2**30, libraries)
    fitting = {name: machine.fitting(*shape) for name, shape in SMALLER.items()}
    by_token = fitting["Llama 3.1 8B"]["in_memory"]["bytes_by_token"]
    most = machine.most_weights(LLAMA_8B.largest, by_token, 256)
    scale = json.loads((Path(__file__).parent / "scale.json").read_text("utf-8"))
    ns = scale["found"]["60M"]["ranges"]["ns_per_weight_and_format"]
    rows = {name: row(shape, ns) for name, shape in SHAPES.items()}
    about = {"command": " ".join(["python", *sys.argv]), "ranges_ns": ns, "rates": RATES}
    print(
        json.dumps(
            {
                **about,
                "share_reached": SHARE,
                "rows": rows,
                "machine": {**asdict(machine), "most_weights_in_memory": most, "fitting": fitting},
            },
            indent=1,
        )
    )


def row(shape: Shape, ranges_ns: float) -> dict[str, Any]:
    """Bytes, operations and hours of one network."""
    tokens, held_out = CALIBRATION * TOKENS, HELD_OUT * TOKENS
    # Forward; again, backward and products of weights' gradients; a forward pass for each answer.
    passes = tokens * 4 + held_out * (FORMATS + 2)
    operations = 2 * shape.active * passes
    # From the host: once for each batch and pass, twice where gradients flow.
    reads = 2 * CALIBRATION / BATCH + (FORMATS + 2) * HELD_OUT / BATCH
    traffic = BYTES * shape.weights * reads
    rate = RATES["accelerators"] * SHARE
    ranges_core_hours = ranges_ns * 1e-9 * shape.weights * FORMATS / 3600
    return {
        **asdict(shape),
        "weight_bytes": BYTES * shape.weights,
        "memory_bytes": {
            "largest weight, as it is and rounded": 2 * BYTES * shape.largest,
            "scales": SCALE * shape.weights * FORMATS / GROUP,
            "between blocks, a batch": BYTES * BATCH * TOKENS * shape.hidden * shape.blocks,
            "answers, a batch": float(ANSWER) * BATCH * TOKENS * shape.vocabulary,
            "answers, held out": BYTES * held_out * shape.vocabulary,
        },
        "operations": operations,
        "traffic_bytes": traffic,
        "hours": {
            "operations": operations / (rate * RATES["operations_per_s"]) / 3600,
            "traffic": traffic / (rate * RATES["bytes_per_s"]) / 3600,
            "ranges": ranges_core_hours / RATES["host_cores"],
        },
        "ranges_core_hours": ranges_core_hours,
    }


if __name__ == "__main__":
    main()
