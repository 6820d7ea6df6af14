"""Pages of weights that lie in files: which leave memory, and what never does."""

import mmap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpq._support import pages
from mpq._support.pages import is_streaming
from mpq.network.mapped import release, streaming, unmapped_bytes

pytestmark = pytest.mark.skipif(
    not pages.can_stream(), reason="only Linux says which pages are a file's"
)
NUMBERS = 2**18


def resident_pages(tensor: Tensor) -> int:
    """Pages of a tensor that are in memory now."""
    address = tensor.data_ptr() // mmap.PAGESIZE
    count = -(-tensor.numel() * tensor.element_size() // mmap.PAGESIZE)
    flags = pages.page_flags(address, count)
    return int((flags & pages.PRESENT != 0).sum())


@pytest.fixture
def stored(tmp_path: Path) -> Tensor:
    """A tensor of 1 MiB that is mapped from a file, and has been read."""
    save_file({"w": torch.arange(NUMBERS).float()}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as opened:
        tensor: Tensor = opened.get_tensor("w")
    assert float(tensor.sum()) > 0
    return tensor


def test_what_was_read_leaves_and_comes_back(stored: Tensor) -> None:
    """No page is left in memory, and the numbers are those of the file."""
    before = resident_pages(stored)

    with streaming():
        release([stored])

    assert before >= NUMBERS * 4 // mmap.PAGESIZE
    assert resident_pages(stored) <= 1
    assert torch.equal(stored, torch.arange(NUMBERS).float())


def test_nothing_leaves_unless_it_streams(stored: Tensor) -> None:
    """Where the network fits into memory, pages would have to come again."""
    before = resident_pages(stored)

    release([stored])
    with streaming(False):
        release([stored])

    assert resident_pages(stored) == before
    assert not is_streaming()


def test_what_was_written_stays(stored: Tensor) -> None:
    """A private mapping forgets writes when its pages go: those of ``data``, too."""
    stored.data[7] = -1.0

    with streaming():
        release([stored])

    assert stored[7] == -1.0
    assert resident_pages(stored) > 1


def test_memory_of_the_process_stays() -> None:
    """A tensor that lies in no file."""
    tensor = torch.arange(NUMBERS).float()

    with streaming():
        release([tensor, None, torch.zeros(3)])

    assert torch.equal(tensor, torch.arange(NUMBERS).float())


def test_a_module_that_was_called_lets_its_own_go(stored: Tensor) -> None:
    """Of any network, without a hook on it, and of its copies."""
    layer = nn.Linear(512, 512, bias=False)
    layer.weight = nn.Parameter(stored.view(512, 512), requires_grad=False)
    network = nn.Sequential(layer)

    with streaming():
        network(torch.zeros(1, 512))
        inside = resident_pages(stored)
    network(torch.zeros(1, 512))

    assert inside <= 1
    assert resident_pages(stored) > 1


def test_an_error_ends_it() -> None:
    """The hook on all modules is gone afterwards."""
    with pytest.raises(ZeroDivisionError), streaming():
        _ = 1 / (not is_streaming())

    assert not is_streaming()
    assert not torch.nn.modules.module._global_forward_hooks


def test_bytes_that_lie_in_no_file(stored: Tensor) -> None:
    """Each memory once; views of a mapped tensor are mapped."""
    own = torch.zeros(100)

    assert unmapped_bytes([stored, stored.view(512, 512)]) == 0
    assert unmapped_bytes([stored, own, own.view(10, 10)]) == 400


def test_a_checkpoint_of_torch_that_is_mapped(tmp_path: Path) -> None:
    """A module of the user's own, whose file is no safetensors file."""
    torch.save({"weight": torch.ones(512, 512)}, tmp_path / "net.pt")
    layer = nn.Linear(512, 512, bias=False)
    layer.load_state_dict(torch.load(tmp_path / "net.pt", mmap=True), assign=True)

    with streaming():
        found = layer(torch.ones(1, 512))

    assert unmapped_bytes(layer.parameters()) == 0
    assert resident_pages(layer.weight) <= 1
    assert torch.equal(found, torch.full((1, 512), 512.0))
