"""What the phases of a search take on larger networks, beside a forward and backward pass.

    python benchmarks/scale.py > benchmarks/scale.json

Llamas of random weights, so that nothing here says how good an answer is. Six weight formats in
groups of 128; every case in a process of its own with one thread:

- ``forward_backward``: one pass with the gradients of all parameters over all sequences, the unit.
- ``ranges``: least-squares ranges of every layer in every format; ``ns_per_weight_and_format``.
- ``sketch``: the estimate alone, over all sequences, ranges known; ``sketch_minmax`` without
  looking for them.
- ``fisher``, ``weight_error``: these estimates alone, ranges from the extremes of the numbers.
- ``search``: the whole of ``mpq.search`` with ``rounding="nearest"``, which estimates on three
  quarters of the sequences and measures on the rest.

``cpu_seconds`` are process time; ``peak_bytes`` the most that the process ever held (VmHWM,
Linux), with the libraries and the model, which are ``loaded_bytes``. ``--sizes``, ``--cases``,
``--sequences``, ``--batch``, ``--tokens`` and ``--dtype`` choose others.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import mpq
from mpq import ESTIMATORS, Calibration, Precision
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import Ranges
from mpq.sensitivity import Estimation

FORMATS = tuple(f"w{bits}g128" for bits in (2, 3, 4, 5, 6, 8))
SIZES: dict[str, dict[str, Any]] = {
    "15M": {"hidden": 288, "layers": 6, "inner": 768, "heads": 6, "tied": True},
    "60M": {"hidden": 512, "layers": 8, "inner": 1376, "heads": 8},
    "160M": {"hidden": 768, "layers": 12, "inner": 2048, "heads": 12, "vocabulary": 50304},
    "360M": {"hidden": 960, "layers": 32, "inner": 2560, "heads": 15, "vocabulary": 49152},
    "1.1B": {"hidden": 2048, "layers": 22, "inner": 5632, "heads": 32},
    "128k": {"hidden": 2048, "layers": 2, "inner": 8192, "heads": 32, "vocabulary": 128256},
}
"""128k: two blocks with the vocabulary of large Llamas."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["15M", "60M"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES][1:])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    asked = parser.parse_args()
    found = {size: measured(size, asked) for size in asked.sizes}
    about = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    about["transformers"] = transformers.__version__
    print(json.dumps({**about, "formats": FORMATS, **vars(asked), "found": found}, indent=1))


def measured(size: str, asked: argparse.Namespace) -> dict[str, Any]:
    """All cases of one size, with their times in units of the first."""
    rows: dict[str, Any] = {}
    for case in ("forward_backward", *asked.cases):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[case] = pool.apply(cost, (size, case, asked))
        print(size, case, rows[case], file=sys.stderr)
    unit = rows["forward_backward"]
    for row in rows.values():
        row["times"] = round(row["cpu_seconds"] / unit["cpu_seconds"], 2)
        row["peak"] = round(row["peak_bytes"] / unit["peak_bytes"], 2)
    return rows


def cost(size: str, case: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Of one case, in the process that runs it."""
    torch.set_num_threads(1)
    model = llama(size, getattr(torch, asked.dtype))
    batches = sequences(model, asked)
    work = CASES[case](model, batches)
    loaded, start = peak_bytes(), time.process_time()
    more = work()
    seconds = time.process_time() - start
    row = {"cpu_seconds": round(seconds, 2), "peak_bytes": peak_bytes(), "loaded_bytes": loaded}
    if isinstance(more, int):  # weights times formats
        row["ns_per_weight_and_format"] = round(1e9 * seconds / more, 1)
    return row


def llama(size: str, dtype: torch.dtype) -> nn.Module:
    shape = SIZES[size]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=shape.get("vocabulary", 32000),
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        tie_word_embeddings=shape.get("tied", False),
        use_cache=False,
    )
    # Made in its dtype: a copy in float32 would be the most that the process ever held.
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def sequences(model: Any, asked: argparse.Namespace) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (asked.sequences, asked.tokens))
    return [{"input_ids": part} for part in ids.split(asked.batch)]


def forward_backward(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    def run() -> None:
        for batch in batches:
            model(**batch).logits.logsumexp(dim=-1).mean().backward()
            model.zero_grad()

    return run


def ranges(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    on = estimation(model, batches, "mse")
    return lambda: known_ranges(on)


def sketch(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    on = estimation(model, batches, "mse")
    known_ranges(on)
    return lambda: ESTIMATORS.build("sketch").estimate(on)


def sketch_minmax(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    return estimate("sketch", model, batches)


def fisher(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    return estimate("fisher", model, batches)


def weight_error(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    return estimate("weight-error", model, batches)


def estimate(name: str, model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    on = estimation(model, batches, "minmax")
    return lambda: ESTIMATORS.build(name).estimate(on)


def search(model: Any, batches: list[dict[str, Tensor]]) -> Callable[[], object]:
    task = mpq.Task(model, batches, candidates=FORMATS, rounding="nearest", ranges=Ranges())
    find = mpq.search  # which imports what it needs
    return lambda: find(task, {"weight_bytes": "0.6x:w8g128"})


CASES: dict[str, Callable[[Any, list[dict[str, Tensor]]], Callable[[], object]]] = {
    "forward_backward": forward_backward,
    "ranges": ranges,
    "sketch": sketch,
    "sketch_minmax": sketch_minmax,
    "fisher": fisher,
    "weight_error": weight_error,
    "search": search,
}


def estimation(model: nn.Module, batches: list[dict[str, Tensor]], method: str) -> Estimation:
    data = Calibration(batches)
    network = Network.of(model, data)
    quantizer = Quantizer(ActivationRanges({}), method, shared=network.shared_weights)
    return Estimation(network, data, quantizer, tuple(map(Precision.parse, FORMATS)))


def known_ranges(on: Estimation) -> int:
    """Weights of all layers times formats, after looking for the ranges of each.

    A layer counts with its weight, also where that is another one's, whose range is known by then.
    """
    count = 0
    for name in on.names:
        rows = on.network.weight(name)
        for tensor_format in on.weights.formats:
            on.quantizer.grid(name, rows, tensor_format)
            count += rows.numel()
    return count


def peak_bytes() -> int:
    """Of this process alone: ``ru_maxrss`` is never below what its parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
