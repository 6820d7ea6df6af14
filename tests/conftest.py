"""What several test files need: the real data, a quick demo search, tiny networks."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import mpq
from mpq import demo

settings.register_profile("mpq", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mpq")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MPQ_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the published networks and tables; tests that need it skip without it."""
    if not DATA.is_dir():
        pytest.skip(f"the published networks are not there ({DATA}); set MPQ_DATA")
    return DATA


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def result() -> mpq.SearchResult:
    """A search on the demo network, shared by the tests that only look at it."""
    return mpq.search(
        demo.make_net(),
        demo.calibration,
        device="cortex-m7",
        limits=["weight_bytes=40KiB", "latency=4.5ms"],
        held_out=demo.held_out,
    )
