"""Another package's processes, which Ctrl-C would leave running."""

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import IOBase
from tempfile import TemporaryDirectory
from traceback import walk_tb
from typing import Any


@contextmanager
def ended_if_interrupted(solver: Any) -> Iterator[None]:
    """Within this block a solver that is a process ends with it, and so do its files.

    Args:
        solver: Of PuLP.
    """
    if not hasattr(solver, "tmpDir"):  # it is no process
        yield
        return
    with TemporaryDirectory(prefix="mpq-") as folder:
        solver.tmpDir = folder
        try:
            yield
        except KeyboardInterrupt as error:
            # PuLP has its process, and what that writes to, in variables, and leaves both.
            for frame, _ in walk_tb(error.__traceback__):
                if frame.f_globals["__name__"].startswith("pulp."):
                    _end(frame.f_locals.values())
            raise


def _end(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, subprocess.Popen):
            value.kill()
            value.wait()
        elif isinstance(value, IOBase):
            value.close()
