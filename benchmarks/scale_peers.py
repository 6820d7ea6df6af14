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

Not like for like. ModelOpt and AutoScheme price the cross entropy of the next token and solve; our
search reads the divergence from the network's own answers, and then measures its answer and the
uniform formats on sequences that it did not read, which is most of its time. Ours prices the
embedding as well, a quarter of the weights, which the others leave as it is; the head counts with
all. ModelOpt ties layers that are fused (query, key and value; gate and up), and may leave layers
as they are. Bits are 4.875 a weight with scales of 16 bits for a group: 0.6 times 8 bits for us, as
they are for AutoScheme, and 4.75 for ModelOpt, which counts codes alone. ModelOpt's ``mse`` tries
39 ranges of each group. AutoScheme has only ranges by maximum of its own kind, and runs twice: with
its defaults, which read blocks from disk again to save memory, and without.
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
from mpq.quantization.ranges import Ranges

SIZE: Final = "60M"
ASKED: Final = {"batch": 4, "bits": [2, 3, 4, 5, 6, 8], "group_size": 128}
DATA: Final = argparse.Namespace(sequences=8, tokens=128, batch=4)
LIMIT: Final = {"weight_bytes": "0.6x:w8g128"}
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
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    given = parser.parse_args()
    about = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "formats": FORMATS,
        "data": vars(DATA),
    }
    with TemporaryDirectory() as place:
        folder = Path(place)
        written(folder)
        rules = {OURS[x.label] for name in given.peers for x in PEERS[name].settings}
        ours = {rule: own(folder, rule) for rule in sorted(rules)}
        peers: dict[str, Any] = {}
        for name in given.peers:
            peers[name] = compared(PEERS[name], given.envs / name, folder, ours)
            found = {**about, "mpq": ours, "peers": peers}
            given.into.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def compared(peer: Peer, env: Path, folder: Path, ours: Mapping[str, Any]) -> dict[str, Any]:
    """A peer in all its settings, each beside ours."""
    python = environment(peer, env)
    rows: dict[str, Any] = {}
    for asked in peer.settings:
        theirs = row(peer, asked, python, folder)
        rule = OURS[asked.label]
        rows[asked.label] = {**theirs, "beside": rule, "ratios": ratios(ours[rule], theirs)}
    pip = "pip install " + " ".join(peer.pip)
    return {"pip": pip, "versions": versions(python, peer), "rows": rows}


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


def own(folder: Path, rule: str) -> dict[str, Any]:
    """What our search takes, in a process of its own."""
    (folder / "asked.json").write_text(json.dumps(ASKED), "utf-8")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(searched, (folder, rule))
    print("mpq", rule, found, file=sys.stderr)
    return found


def searched(folder: Path, rule: str) -> dict[str, Any]:
    """In the process that runs it."""
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


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    return {key: round(ours[key] / theirs[key], 3) for key in ("cpu_seconds", "peak_bytes")}


if __name__ == "__main__":
    main()
