"""What a search would take of networks that were not run: formulas and measured constants.

    python benchmarks/on_paper.py > benchmarks/on_paper.json

Llama 3.1 405B (Dubey et al. 2024, arXiv:2407.21783) and DeepSeek-V3 671B (Liu et al. 2024,
arXiv:2412.19437), shapes as published, in bf16, streamed (docs/scaling.md) on a node of eight
accelerators of 80 GB: 512 calibration and 128 held-out sequences of 2048 tokens in batches of two,
six weight formats in groups of 128, to nearest. Nothing here was run. Measured are the seconds of
ranges for a weight and a format (``scale.json``, one core); taken from datasheets are ``RATES``, of
which ``SHARE`` is reckoned to be reached. Products of a weight's gradient count as many operations
as a forward pass has; a block is run twice in a pass with gradients.
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


SHAPES: Final = {
    "Llama 3.1 405B": Shape(405.9e9, 405.9e9, 128256 * 16384, 126, 16384, 128256),
    "DeepSeek-V3 671B": Shape(671e9, 37e9, 129280 * 7168, 61, 7168, 129280),
}


def main() -> None:
    scale = json.loads((Path(__file__).parent / "scale.json").read_text("utf-8"))
    ns = scale["found"]["60M"]["ranges"]["ns_per_weight_and_format"]
    rows = {name: row(shape, ns) for name, shape in SHAPES.items()}
    about = {"command": " ".join(["python", *sys.argv]), "ranges_ns": ns, "rates": RATES}
    print(json.dumps({**about, "share_reached": SHARE, "rows": rows}, indent=1))


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
            "scales": 8 * shape.weights * FORMATS / GROUP,
            "between blocks, a batch": BYTES * BATCH * TOKENS * shape.hidden * shape.blocks,
            "answers, a batch": 40.0 * BATCH * TOKENS * shape.vocabulary,
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
