"""Which modules a network is run by, one after the other."""

import pytest
from torch import nn

from mpq.errors import InputError
from mpq.network.blocks import blocks_of, layers_by_block


def block(width: int) -> nn.Module:
    """A block with a layer in it."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU())


@pytest.fixture
def net() -> nn.Module:
    """Two lists of blocks, one of layers, and a sequence."""
    found = nn.Module()
    found.small = nn.ModuleList(block(2) for _ in range(5))
    found.large = nn.ModuleList(block(9) for _ in range(2))
    found.layers = nn.ModuleList(nn.Linear(50, 50) for _ in range(2))
    found.steps = nn.Sequential(block(3), block(3))
    return found


def test_the_largest_list(net: nn.Module) -> None:
    """By parameters; a list of plain layers has no blocks."""
    assert list(blocks_of(net)) == list(net.get_submodule("large").children())


@pytest.mark.parametrize("name", ["small", "steps"])
def test_the_one_that_is_named(net: nn.Module, name: str) -> None:
    """A list or a sequence."""
    assert list(blocks_of(net, name)) == list(net.get_submodule(name).children())


@pytest.mark.parametrize("name", ["layers", "nothing", "large.0.0"])
def test_a_name_of_no_blocks(net: nn.Module, name: str) -> None:
    """The message has those that there are."""
    with pytest.raises(InputError, match="lists of the network: 'small', 'large'"):
        blocks_of(net, name)


def test_a_network_without_blocks() -> None:
    """It says what to name."""
    with pytest.raises(InputError, match=r"no nn\.ModuleList of blocks: name an nn\.Sequential"):
        blocks_of(nn.Sequential(nn.Linear(2, 2)))


def test_layers_by_the_block_that_they_are_in(net: nn.Module) -> None:
    """Of every outermost list; a list of layers has no blocks, and what is in none is left out."""
    net.steps = nn.Sequential(nn.Sequential(block(3), block(3)), block(3))
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]

    found = layers_by_block(net, names)

    assert found[:2] == [["small.0.0"], ["small.1.0"]]
    assert found[5:] == [
        ["large.0.0"],
        ["large.1.0"],
        ["steps.0.0.0", "steps.0.1.0"],
        ["steps.1.0"],
    ]
