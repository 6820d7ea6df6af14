"""What a search of a large network holds in memory, streamed from its files and without.

    python benchmarks/streaming.py --sizes 1.1B > benchmarks/streaming.json

Llamas in bfloat16 of random weights, so that nothing here says how good an answer is. Each is
written to a temporary folder shard by shard (never whole in memory) and searched in processes of
their own with one thread: ``streamed`` within ``--memory``, ``in_memory`` without a limit;
``made_in_memory`` is of weights that no file has, near the border of what a machine holds.

``peak_bytes`` is the most that a process ever held (VmHWM, Linux), the libraries and the pages of
mapped files with it; ``loaded_bytes`` what it held before the search. ``cpu_seconds`` is process
time, ``read_bytes`` what came from the disk and not from the system's cache of files. ``table_sum``
and ``loss`` are the estimate's sum and the loss measured for the answer, ``codes`` a checksum of
its weights where ``--rounding`` looks at data: equal in both cases. ``--verbs`` evaluates and
exports the answer afterwards, in processes of their own within ``--memory``.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

import mpq
from mpq.cli.loading import load_folder
from mpq.network.mapped import streaming

SIZES: dict[str, dict[str, int]] = {
    "60M": {"hidden": 512, "layers": 8, "inner": 1376, "heads": 8, "keys": 8},
    "300M": {"hidden": 1024, "layers": 16, "inner": 2816, "heads": 16, "keys": 4},
    "1.1B": {"hidden": 2048, "layers": 22, "inner": 5632, "heads": 32, "keys": 4},
    "3B": {"hidden": 3072, "layers": 28, "inner": 8192, "heads": 24, "keys": 8},
    "7B": {"hidden": 4096, "layers": 32, "inner": 11008, "heads": 32, "keys": 32},
    "9B": {"hidden": 4096, "layers": 44, "inner": 11008, "heads": 32, "keys": 32},
}
VOCABULARY = 32000
CASES = ["streamed", "in_memory", "made_in_memory"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["60M"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=None)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--formats", nargs="+", default=["w2g128", "w4g128", "w8g128"])
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--probes", type=int, default=2)
    parser.add_argument("--range", default="mse", help="how ranges of weights are chosen")
    parser.add_argument("--rounding", default="nearest", help="how weights become codes")
    parser.add_argument("--verbs", action="store_true", help="evaluate and export the answer, too")
    asked = parser.parse_args()
    about = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    about["transformers"] = transformers.__version__
    found = {size: measured(size, asked) for size in asked.sizes}
    print(json.dumps({**about, **vars(asked), "found": found}, indent=1))


def measured(size: str, asked: argparse.Namespace) -> dict[str, Any]:
    """All cases of one size."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases = asked.cases or ["streamed", "in_memory"]
        if cases != ["made_in_memory"]:
            rows["weights"] = write_llama(Path(folder), **SIZES[size])
        for case in cases:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows[case] = pool.apply(cost, (folder, size, case, asked))
            print(size, case, rows[case], file=sys.stderr)
        for verb in ("evaluate", "export") if asked.verbs else ():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows[verb] = pool.apply(put_to_work, (folder, verb, asked))
            print(size, verb, rows[verb], file=sys.stderr)
    return rows


def write_llama(folder: Path, hidden: int, layers: int, inner: int, heads: int, keys: int) -> int:
    """A folder as transformers writes it, a block at a time; how many weights it has."""
    config = config_of(hidden, layers, inner, heads, keys)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in transformers.LlamaForCausalLM(config).named_parameters()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        # model.layers.3.mlp... with its block, all else by itself
        shards.setdefault(name.split(".")[2] if ".layers." in name else name, []).append(name)
    generator, places = torch.Generator().manual_seed(0), dict[str, str]()
    for number, names in enumerate(shards.values()):
        file = f"model-{number:05d}.safetensors"
        save_file({n: weight(shapes[n], generator) for n in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return sum(shape.numel() for shape in shapes.values())


def config_of(
    hidden: int, layers: int, inner: int, heads: int, keys: int
) -> transformers.LlamaConfig:
    """Of a size."""
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def made_in_memory(size: str) -> torch.nn.Module:
    """A network of random weights that no file has, so that it cannot be streamed."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.LlamaForCausalLM(config_of(**SIZES[size])).eval()
    torch.set_default_dtype(before)
    return model


def weight(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, generator=generator)).bfloat16()


def cost(folder: str, size: str, case: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Of one case, in the process that runs it."""
    torch.set_num_threads(1)
    is_made = case == "made_in_memory"
    model = made_in_memory(size) if is_made else load_folder(Path(folder))
    loaded, start, read = peak_bytes(), time.process_time(), read_bytes()
    result = mpq.search(
        mpq.Task(
            model,
            sequences(asked),
            candidates=asked.formats,
            rounding=asked.rounding,
            ranges=mpq.Ranges(weight=asked.range),
            memory=asked.memory if case == "streamed" else None,
            # As the target of the verbs wants it.
            rules=mpq.Rules(exclude=["model.embed_tokens"] if asked.verbs else ()),
        ),
        {"weight_bytes": f"0.6x:{asked.formats[-1]}"},
        sensitivity=f"sketch:num_probes={asked.probes}",
    )
    if asked.verbs:
        result.assignment.save(Path(folder) / "run")
    return {
        "weights": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(time.process_time() - start, 1),
        "peak_bytes": peak_bytes(),
        "loaded_bytes": loaded,
        "read_bytes": read_bytes() - read,
        "said": result.provenance.streamed,
        "table_sum": float(result.problem.loss.values.sum()),
        "loss": result.comparison("result").measured.divergence,
        "columns": result.columns.tolist(),
        "codes": result.assignment.weights and result.assignment.weights.sha256,
    }


def put_to_work(folder: str, verb: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What measuring or exporting the answer costs within ``--memory``, in a process of its own."""
    torch.set_num_threads(1)
    model, start = load_folder(Path(folder)), time.process_time()
    loaded = peak_bytes()
    with streaming():
        assignment = mpq.Assignment.load(Path(folder) / "run")
    found: dict[str, Any] = {}
    if verb == "evaluate":
        measured = mpq.evaluate(model, assignment, sequences(asked), memory=asked.memory)
        found["loss"] = measured["quantized"].divergence
    else:
        made, data = Path(folder) / "made", sequences(asked)
        export = mpq.export(
            assignment, made, "compressed-tensors", model, data, memory=asked.memory
        )
        found["verdict"] = export.verdict
    seconds = round(time.process_time() - start, 1)
    return {"cpu_seconds": seconds, "peak_bytes": peak_bytes(), "loaded_bytes": loaded, **found}


def sequences(asked: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (asked.sequences, asked.tokens))
    return [{"input_ids": part} for part in ids.split(asked.batch)]


def peak_bytes() -> int:
    """Of this process alone: ``ru_maxrss`` is never below what its parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def read_bytes() -> int:
    """What this process had the disk read."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    main()
