"""Fixtures of exports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpq.backends import shipping
from mpq.backends.fresh import FreshRun
from mpq.backends.target import Target, Traceable
from mpq.network.examples import Batch


def here(
    target: Target, spelled: str, folder: Path, batches: Sequence[Batch], exchange: Path
) -> FreshRun:
    """What ``run_fresh`` does, without another process."""
    loaded = target.load(folder)
    with torch.no_grad():
        outputs = tuple(loaded.run(batch).float() for batch in batches)
    file = exchange / "weights.safetensors"
    save_file({name: t.float().contiguous().clone() for name, t in loaded.weights.items()}, file)
    with torch.no_grad():
        others = {
            name: tuple(each.run(batch).float() for batch in batches)
            for name, each in target.load_otherwise(folder).items()
        }
    return FreshRun(outputs, 0.5, loaded.versions, loaded.kinds, file, others)


def seen(
    target: Target, spelled: str, folder: Path, batch: Batch, exchange: Path
) -> Mapping[str, torch.Tensor]:
    """What ``trace_fresh`` does, without another process."""
    loaded = target.load(folder)
    return loaded.traced(batch) if isinstance(loaded, Traceable) else {}


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are run here: another process takes half a minute to import all that it needs."""
    monkeypatch.setattr(shipping, "run_fresh", here)
    monkeypatch.setattr(shipping, "trace_fresh", seen)
