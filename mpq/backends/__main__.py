"""The child of an export: loads a folder with a target's runtime, and runs it.

``python -m mpq.backends PARENT TARGET FOLDER EXCHANGE [modules]``; see ``mpq.backends.fresh``.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from mpq.backends import target_of
from mpq.backends.fresh import ANSWER, OTHERS, run_batches, run_otherwise
from mpq.backends.runtime import Traceable
from mpq.errors import MpqError
from mpq.network.examples import Batch

POLL_S: Final = 1.0
"""How often the process asks whether its parent is still there."""


def main(parent: str, spelled: str, folder: str, exchange: str, what: str = "run") -> None:
    """Leaves ``answer.pt``, ``others.pt``, ``weights.safetensors``, or an error's sentence as JSON.

    Of ``modules``: ``modules.safetensors``, what each of them reads and gives in the first batch.
    """
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    target, meeting = target_of(spelled), Path(exchange)
    try:
        loaded = target.load(Path(folder))
        stored = torch.load(meeting / "batches.pt", weights_only=True)
        batches = [Batch(args, kwargs, None, *cut) for args, kwargs, *cut in stored]
        if what == "modules":
            seen = loaded.traced(batches[0]) if isinstance(loaded, Traceable) else {}
            # A file of safetensors refuses what is turned around, as MLX's rotary embeddings are.
            copies = {name: t.contiguous() for name, t in seen.items()}
            save_file(copies, meeting / "modules.safetensors")
            return
        # Decoded before anything runs: some readers unpack their weights for good when they run.
        # Copies, as a file of safetensors refuses layers that share a tensor.
        weights = {name: t.float().contiguous().clone() for name, t in loaded.weights.items()}
        save_file(weights, meeting / "weights.safetensors")
        kinds = dict(loaded.kinds)
        with torch.no_grad():
            outputs, more = run_batches(loaded, batches)
            started = time.perf_counter()
            loaded.run(batches[0])
            seconds = time.perf_counter() - started
    except MpqError as error:
        told = {"mpq_error": type(error).__name__, "text": str(error)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.exit(1)
    answer = {
        "outputs": outputs, "seconds": seconds, "versions": dict(loaded.versions), "kinds": kinds,
        "more": more,
    }  # fmt: skip
    # Before other settings are tried: a runtime that breaks down under one takes no answer along.
    torch.save(answer, meeting / ANSWER)
    torch.save(run_otherwise(target.load_otherwise(Path(folder)), batches), meeting / OTHERS)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has, which nobody waits for any more.

    Args:
        parent: Its id, as the parent has given it: one that has died before this process had
            imported all that it needs is no parent of it any more.
    """
    if sys.platform == "win32":  # where a virtual environment's Python has a launcher for a parent
        parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
