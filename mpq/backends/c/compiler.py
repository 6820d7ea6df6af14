"""The C compiler of a machine: what it makes of an exported folder, and what that takes."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mpq.errors import MissingDependencyError, ModelError

FLAGS: Final = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SOURCES: Final = ("network.c", "kernels.c")
LIMIT_S: Final = 600.0


def compiler() -> str:
    """The C compiler: ``CC`` of the environment, or ``cc``, or ``gcc``.

    Raises:
        MissingDependencyError: If there is none.
    """
    wanted = os.environ.get("CC")
    for name in (wanted,) if wanted else ("cc", "gcc"):
        if shutil.which(name):
            return name
    raise MissingDependencyError(
        f"c: there is no C compiler ({wanted or 'cc, gcc'}) to compile and run what is exported: "
        "install gcc, or name one in the environment variable CC"
    )


def version_of(command: str) -> str:
    """First line of what a compiler says of itself."""
    return run([command, "--version"]).decode(errors="replace").partition("\n")[0]


def compiled(folder: Path, sources: Sequence[str], program: Path, *flags: str) -> Path:
    """A program, or with ``-c`` an object, of some of a folder's files.

    Raises:
        ModelError: If the compiler refuses them; with its first error.
    """
    files = [str(folder / name) for name in sources]
    libraries = () if "-c" in flags else ("-lm",)
    run([compiler(), *FLAGS, "-O2", *flags, "-o", str(program), *files, *libraries])
    return program


def run(command: Sequence[str], given: bytes = b"") -> bytes:
    """Standard output of a program.

    Raises:
        ModelError: If it fails; with the end of what it said.
    """
    try:
        ended = subprocess.run(command, input=given, capture_output=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"c: {Path(command[0]).name} took over {LIMIT_S:.0f} seconds") from error
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in said if "error" in line] or said[-1:]
        told = errors[0] if errors else f"ended with {ended.returncode}"
        raise ModelError(f"c: {Path(command[0]).name}: {told}")
    return ended.stdout


def sections(symbols: bytes) -> tuple[int, int]:
    """Bytes of constants and of variables, by what ``nm -S`` prints of an object.

    >>> sections(b"0 10 r codes_0\\n0 08 b arena\\n0 90 T network_run\\n")
    (16, 8)
    """
    constants, variables = 0, 0
    for line in symbols.decode().splitlines():
        words = line.split()
        # Names without a size are those of other files.
        if len(words) != 4:
            continue
        if words[2] in "rR":
            constants += int(words[1], 16)
        elif words[2] in "bBdD":
            variables += int(words[1], 16)
    return constants, variables
