"""The exported network on a Cortex-M4 without floating point, emulated by qemu."""

import shutil
from pathlib import Path

import pytest
from torch import nn

import mpq
from mpq.backends.c.compiler import run, sections
from mpq.backends.c.source import constant_bytes
from mpq.demo import calibration, make_net
from mpq.errors import ModelError
from tests.backends.c.networks import Everything, Line, Made, Unfused, assigned, examples, network

GCC, QEMU = "arm-none-eabi-gcc", "qemu-system-arm"
FLAGS = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft", "-std=c99", "-Wall", "-Wextra"]
OWN = Path(__file__).parent / "cortex_m4"
STRICT = ["-pedantic", "-Werror", "-Os"]

pytestmark = pytest.mark.skipif(
    not (shutil.which(GCC) and shutil.which(QEMU)),
    reason=f"{GCC} and {QEMU} are not there: apt-get install gcc-arm-none-eabi qemu-system-arm",
)


def objects(folder: Path) -> list[str]:
    """Cross-compiled, the project's files in the strictest C99."""
    made = []
    for name in ("network", "kernels", "check"):
        file = folder / f"{name}.o"
        run([GCC, *FLAGS, *STRICT, "-c", str(folder / f"{name}.c"), "-o", str(file)])
        made.append(str(file))
    # What copies and clears memory must not become a call of the function that does so.
    plain = ["-O1", "-fno-tree-loop-distribute-patterns"]
    run([GCC, *FLAGS, *plain, "-c", str(OWN / "start.c"), "-o", str(folder / "start.o")])
    return [*made, str(folder / "start.o")]


def emulate(folder: Path) -> str:
    """Runs the check on the board; returns the linker's map. A mismatch raises."""
    program, told = folder / "check.elf", folder / "check.map"
    linked = [GCC, *FLAGS, "-nostdlib", "-T", str(OWN / "an386.ld"), f"-Wl,-Map={told}"]
    run([*linked, *objects(folder), "-lgcc", "-o", str(program)])
    board = [QEMU, "-M", "mps2-an386", "-nographic", "-semihosting-config", "enable=on"]
    run([*board, "-kernel", str(program)])
    return told.read_text()


def undefined(folder: Path) -> set[str]:
    """What the network and its kernels call of others."""
    listed = run(["arm-none-eabi-nm", "-u", str(folder / "network.o"), str(folder / "kernels.o")])
    return {line.split()[1] for line in listed.decode().splitlines() if line.startswith("   ")}


@pytest.mark.parametrize("kind", [Everything, Line, Unfused])
def test_the_board_computes_the_integer_simulation(kind: type[nn.Module], tmp_path: Path) -> None:
    """Bit for bit; and nothing is called but the kernels and a library's integers."""
    model, data = network(kind), examples(kind)
    made = Made.of(model, assigned(model, data, ("w2a8", "w4a4", "w5a7")), data)
    made.write(tmp_path, data)

    emulate(tmp_path)

    # No function of floating point: those are called __aeabi_f..., __aeabi_d..., __aeabi_i2f.
    calls = {name for name in undefined(tmp_path) if not name.startswith("mpq_")}
    assert calls <= {"__aeabi_lmul", "__aeabi_llsl", "__aeabi_lasr", "memset", "memcpy"}


def test_the_board_tells_a_wrong_output(tmp_path: Path) -> None:
    """By what the check returns: the number of examples that differ."""
    model, data = network(Line), examples(Line)
    made = Made.of(model, assigned(model, data, ("w4a8",)), data)
    wrong = made.outputs(data)
    wrong[1:3] += 1
    made.write(tmp_path, data, wrong)

    with pytest.raises(ModelError, match="ended with 2"):
        emulate(tmp_path)


def test_the_demo_runs_on_the_board_in_the_memory_that_was_promised(tmp_path: Path) -> None:
    """Searched within a limit on memory: bytes of the object and map are flash and peak_ram."""
    task = mpq.Task(make_net(), calibration(), to="c", candidates=["w2a8", "w4a8", "w8a8"])
    limits = ["flash=36KiB", "peak_ram=3.5KiB"]
    result = mpq.search(task, limits, sensitivity="weight-error")
    data = next(iter(calibration()))[0][:8]
    model = make_net()
    made = Made.of(model, result.assignment, data)
    made.write(tmp_path, data)

    told = emulate(tmp_path)

    used = {budget.resource: budget.used for budget in result.assignment.metadata.budgets}
    sizes = sections(run(["arm-none-eabi-nm", "-S", str(tmp_path / "network.o")]))
    assert sizes == (used["flash"], used["peak_ram"])
    assert sizes[0] == sum(map(constant_bytes, made.program.layers))
    (bss,) = [x for x in told.splitlines() if x.startswith(" .bss") and "network.o" in x]
    assert int(bss.split()[2], 16) == used["peak_ram"]
