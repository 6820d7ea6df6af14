"""What choosing formats takes elsewhere, on the Llama of 60 M random weights of ``scale.py``.

    python benchmarks/scale_peers.py --envs environments --into benchmarks/scale_peers.json

ModelOpt's ``auto_quantize`` by gradients, with ranges by maximum (``max``) and by squared error
(``mse``), and AutoRound's AutoScheme, each in an environment of its own (made as ``peers.py`` makes
them, with the pinned line of ``PEERS``, where it is not there yet) and in a process of its own with
one thread; beside them ``mpq.search`` with rounding to nearest and ranges by ``minmax`` and by
``mse``. All read the same folder in float32 and the same 8 sequences of 128 random tokens in
batches of 4, and choose among 2, 3, 4, 5, 6 and 8 bits in groups of 128.

``cpu_seconds`` are the process time of the call that chooses, ``peak_bytes`` the most that the
process ever held (VmHWM, Linux), ``loaded_bytes`` what it had held before the call, with libraries
and network. ``ratios`` are ours over the peer's: below 1 we take less. What a peer does in other
processes (AutoRound reads its texts in one) is not counted.

Not like for like. ModelOpt and AutoScheme price the cross entropy of the next token and solve; the
whole ``search`` prices the divergence from the network's own answers on three quarters of the
sequences, and measures its answer and the uniform formats on the others, which they never do. It
has the embedding among its layers, a quarter of the weights, which they leave as it is; all have
the head. So ``choosing`` stands beside it: the search's estimate, of all sequences and the others'
layers, and its solver. ModelOpt ties layers that are fused (query, key and value; gate and up), and
may leave layers as they are. Bits are 4.875 a weight with scales of 16 bits for a group (0.6 times
8 bits), as they are for AutoScheme, and 4.75 for ModelOpt, which counts codes alone. ModelOpt's
``mse`` tries 39 ranges of each group. AutoScheme has only ranges by maximum, of its own kind, and
runs twice: with its defaults, which read blocks from disk again to save memory, and without.

``--settings`` takes some of the peers' settings, ``--parts`` some of ours. Rows that are in the
file already are not made again.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
import transformers
from peer_drivers.clock import Asked, cost
from peers import PEERS as ROUNDING_PEERS
from peers import Peer, Setting, environment, run, versions
from safetensors.torch import save_file
from scale import FORMATS, llama, sequences

import mpq
from mpq.problem.limits import parse_limits
from mpq.quantization.ranges import Ranges
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.method import Method
from mpq.workflows.search import estimated
from mpq.workflows.setup import Prepared

SIZE: Final = "60M"
ASKED: Final = {"batch": 4, "bits": [2, 3, 4, 5, 6, 8], "group_size": 128}
DATA: Final = argparse.Namespace(sequences=8, tokens=128, batch=4)
EMBEDDING: Final = "model.embed_tokens"
LIMIT: Final = {"weight_bytes": "0.6x:w8g128"}
OF_LAYERS: Final = {"effective_bits": 4.875}
"""The same bits, of the layers alone."""
COMMAND: Final = (
    "python benchmarks/scale_peers.py --envs environments --into benchmarks/scale_peers.json"
)
DRIVER_LIMIT_S: Final = 3600


def setting(label: str, **options: Any) -> Setting:
    return Setting(label, {"*": "w{bits}g128"}, (SIZE,), options)


PEERS: Final = {
    "modelopt": Peer(
        "nvidia-modelopt",
        ("torch==2.13.0", "transformers==5.24.0", "nvidia-modelopt==0.47.0"),
        "modelopt_driver.py",
        (
            setting("max", algorithm="max", effective_bits=4.75),
            setting("mse", algorithm="mse", effective_bits=4.75),
        ),
    ),
    "auto-round": Peer(
        "auto-round",
        ROUNDING_PEERS["auto-round"].pip,
        "auto_scheme_driver.py",
        (
            setting("defaults", avg_bits=4.875, memory={}),
            setting(
                "all in memory",
                avg_bits=4.875,
                memory={"low_gpu_mem_usage": False, "low_cpu_mem_usage": False},
            ),
        ),
    ),
}
OURS: Final = {"max": "minmax", "mse": "mse", "defaults": "minmax", "all in memory": "minmax"}
"""The rule for our ranges beside each setting of a peer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    given = parser.parse_args()
    found = there(given.into)
    with TemporaryDirectory() as place:
        folder = Path(place)
        written(folder)
        for name, peer in PEERS.items():
            for asked in peer.settings:
                if asked.label not in given.settings:
                    continue
                python = environment(peer, given.envs / name)
                told = found["peers"].setdefault(name, about(peer, python))
                if asked.label not in told["rows"]:
                    told["rows"][asked.label] = row(peer, asked, python, folder)
                    write(found, given.into)
        for rule in sorted({OURS[label] for label in given.settings}):
            for part in given.parts:
                ours = found["mpq"].setdefault(rule, {})
                if part not in ours:
                    ours[part] = own(folder, rule, part)
                    write(found, given.into)


def there(into: Path) -> dict[str, Any]:
    """What a run that was stopped had found; rows that are there are not made again."""
    if into.exists():
        found: dict[str, Any] = json.loads(into.read_text("utf-8"))
        return found
    return {
        "command": COMMAND,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "formats": FORMATS,
        "data": vars(DATA),
        "mpq": {},
        "peers": {},
    }


def about(peer: Peer, python: Path) -> dict[str, Any]:
    pip = "pip install " + " ".join(peer.pip)
    return {"package": peer.package, "pip": pip, "versions": versions(python, peer), "rows": {}}


def write(found: dict[str, Any], into: Path) -> None:
    """With the ratios of all that is there."""
    for told in found["peers"].values():
        for label, theirs in told["rows"].items():
            theirs["beside"] = OURS[label]
            theirs["ratios"] = ratios(found["mpq"].get(OURS[label], {}), theirs)
    into.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def written(folder: Path) -> None:
    """The network and the tokens, for all that read them."""
    model: Any = llama(SIZE, torch.float32)
    tokens = torch.cat([batch["input_ids"] for batch in sequences(model, DATA)])
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    model.save_pretrained(folder / "network")


def row(peer: Peer, setting: Setting, python: Path, folder: Path) -> dict[str, Any]:
    """What a peer takes, by its driver."""
    asked = {**ASKED, **setting.options}
    (folder / "asked.json").write_text(json.dumps(asked), "utf-8")
    driver = Path(__file__).parent / "peer_drivers" / peer.driver
    said = run([str(python), str(driver), str(folder)], DRIVER_LIMIT_S, folder)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(peer.package, setting.label, found, file=sys.stderr)
    return {"options": asked, **found}


def own(folder: Path, rule: str, part: str) -> dict[str, Any]:
    """What ours takes, in a process of its own."""
    (folder / "asked.json").write_text(json.dumps(ASKED), "utf-8")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(PARTS[part], (folder, rule))
    print("mpq", rule, part, found, file=sys.stderr)
    return found


def searched(folder: Path, rule: str) -> dict[str, Any]:
    """The whole search, in the process that runs it."""
    asked = Asked(folder)
    task = mpq.Task(
        asked.network(),
        asked.batches,
        candidates=FORMATS,
        rounding="nearest",
        ranges=Ranges(weight=rule),
    )
    find = mpq.search  # which imports what it needs
    return {"limit": LIMIT, **cost(lambda: find(task, LIMIT))}


def chosen(folder: Path, rule: str) -> dict[str, Any]:
    """What the others do: the search's estimate of all sequences, and its solver."""
    asked = Asked(folder)
    task = mpq.Task(
        asked.network(),
        asked.batches,
        asked.batches,  # all are for the estimate then, and nothing is measured
        candidates=FORMATS,
        rules=mpq.Rules(exclude=(EMBEDDING,)),
        rounding="nearest",
        ranges=Ranges(weight=rule),
    )
    method = Method.of(ESTIMATOR, SOLVER, task.seed)

    def choose() -> None:
        prepared = Prepared.of(task)
        constraints = prepared.constraints(parse_limits(OF_LAYERS))
        method.solver.solve(estimated(prepared, constraints, method.estimator, method.solver))

    return {"limit": OF_LAYERS, **cost(choose)}


PARTS: Final = {"search": searched, "choosing": chosen}


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    keys = ("cpu_seconds", "peak_bytes")
    return {
        part: {key: round(own[key] / theirs[key], 3) for key in keys} for part, own in ours.items()
    }


if __name__ == "__main__":
    main()
