"""The compiled network, the integer simulation and the one in floating point: three ways to one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpq.backends.c.compiler import SOURCES, compiled, run, sections
from mpq.backends.c.source import constant_bytes
from mpq.errors import ModelError
from tests.backends.c.networks import (
    Everything,
    Line,
    Made,
    Pools,
    Unfused,
    assigned,
    examples,
    network,
)

NETWORKS = [Everything, Line, Pools, Unfused]
MIXES = [
    ("w8a8",),
    ("w2a8", "w3a7", "w5a6", "w6a5", "w7a4"),
    ("w4ta8s", "w8ta4s", "w3a4"),
    ("w4a4", "w8a8", "w8a3", "w5a8"),
    ("w[2,5,8]a6",),
]


SANITIZED = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of every network, compiled once."""
    folder, (made, data) = tmp_path_factory.mktemp("kernels"), made_of(Line, MIXES[0])
    made.write(folder, data)
    return compiled(folder, ("kernels.c",), folder / "kernels.o", "-c", *SANITIZED)


MADE: dict[tuple[str, tuple[str, ...]], tuple[Made, torch.Tensor]] = {}


def made_of(kind: type[nn.Module], mix: tuple[str, ...]) -> tuple[Made, torch.Tensor]:
    """A network in one precision after the other, made once: no test changes it."""
    if (kind.__name__, mix) not in MADE:
        model, data = network(kind), examples(kind)
        MADE[kind.__name__, mix] = Made.of(model, assigned(model, data, mix), data), data
    return MADE[kind.__name__, mix]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(mix))
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_compiled_network_is_the_integer_simulation(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path, kernels: Path
) -> None:
    """Bit for bit, in the strictest C99; its constants and arena have the promised bytes."""
    made, data = made_of(kind, mix)
    made.write(tmp_path, data)
    assert (tmp_path / "kernels.c").read_bytes() == kernels.with_suffix(".c").read_bytes()
    program, own = tmp_path / "check", ("check.c", "network.c")

    run([str(compiled(tmp_path, own, program, *SANITIZED, str(kernels)))])

    symbols = compiled(tmp_path, ("network.c",), tmp_path / "network.o", "-c")
    sizes = sections(run(["nm", "-S", str(symbols)]))
    assert sizes == (sum(map(constant_bytes, made.program.layers)), made.program.arena.num_bytes)


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(mix))
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_integer_simulation_is_the_one_in_floating_point(
    kind: type[nn.Module], mix: tuple[str, ...]
) -> None:
    """But for numbers that lie between two codes, which are few: the median example is equal."""
    made, data = made_of(kind, mix)

    found = torch.from_numpy(made.outputs(data)).double() * made.program.output_form.scale

    expected = made.rounded(data).double()
    differences = (found - expected.flatten(1)).abs().amax(1)
    assert float(differences.median()) < 1e-5 * float(expected.std())
    assert float(expected.std()) > 0


def test_the_reference_can_be_moved_by_ties() -> None:
    """Its biases are parameters that others take the place of, and they are read."""
    made, data = made_of(Everything, ("w4a4",))
    moved = {name: p * 1.5 for name, p in made.rounded.named_parameters() if p.ndim == 1}

    found = torch.func.functional_call(made.rounded, moved, (data,))

    assert moved
    assert not torch.equal(found, made.rounded(data))


def test_an_output_that_differs_is_counted(tmp_path: Path) -> None:
    """By the check that travels with the folder: one bit of one example."""
    made, data = made_of(Line, ("w4a8",))
    wrong = made.outputs(data)
    wrong[3, 1] ^= 1
    made.write(tmp_path, data, wrong)

    check = compiled(tmp_path, ("check.c", *SOURCES), tmp_path / "check")

    with pytest.raises(ModelError, match="ended with 1"):
        run([str(check)])


def test_a_name_ends_no_comment(tmp_path: Path) -> None:
    """Layers may be called whatever Python lets a module be called."""
    model: Any = nn.Sequential()
    model.add_module("*/ #error", nn.Linear(4, 3))
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    made = Made.of(model.eval(), assigned(model.eval(), data, ("w4a8",)), data)
    made.write(tmp_path, data)

    assert run([str(compiled(tmp_path, ("check.c", *SOURCES), tmp_path / "check"))]) == b""
