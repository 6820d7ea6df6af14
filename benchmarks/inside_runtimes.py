"""What answers with bits inside layers run on: bytes and speed of what is exported.

    python benchmarks/inside_runtimes.py > benchmarks/inside_runtimes.json

ResNet-20 with inputs of 8 bits, weights to nearest at the bytes of uniform w4a8: whole layers,
channels, and two blocks of channels that are alike. Written as portable C (which holds channels of
different widths), and for ONNX Runtime with each width as a layer (``divide``) or all in the widest
(``widen``). ``kl_nats`` is what the runtime itself loses on the examples that it ran, from the
network that it came from. Examples a second are of this machine, one thread, and of batches as the
target takes them: compare rows of one target only. Needs the published networks: MPQ_DATA, or
../shared/data.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from rounding_search import network, parts

import mpq

SPLITS: Final = ("none", "channels", "blocks:2")
WAYS: Final = (("c", None), ("onnx-qdq", "divide"), ("onnx-qdq", "widen"))
CANDIDATES: Final = ("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w8a8")


def main() -> None:
    torch.set_num_threads(1)
    model, (calibration, fresh) = network("resnet20", 0)
    seen, held_out = parts(calibration)
    rows = []
    for split in SPLITS:
        task = mpq.Task(
            model, seen, held_out, candidates=CANDIDATES, rounding="nearest", split=split
        )
        result = mpq.search(task, {"weight_bytes": "1x:w4a8"})
        for target, way in WAYS:
            if split == "none" and way == "widen":
                continue  # there is nothing to widen
            row = written(result, target, way, model, [x[:16] for x, _ in fresh[:2]])
            rows.append({"split": split, "target": target, "channels": way, **row})
            print(rows[-1], file=sys.stderr)
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def written(
    result: mpq.SearchResult,
    target: str,
    way: str | None,
    model: torch.nn.Module,
    examples: list[torch.Tensor],
) -> dict[str, Any]:
    """What an export says of itself."""
    assignment, told = result.assignment, {"searched_kl_nats": result.measured.divergence}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        mpq.export(assignment, made, target, model, examples, channels=way)
        found = json.loads((made / "export.json").read_text())
    kept = ("num_layers", "file_bytes", "examples_per_second", "kl_from_original_nats")
    return {**told, **{key: found[key] for key in kept}}


if __name__ == "__main__":
    main()
