"""An exported folder on this machine: compiled, checked against its own examples, and run."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
import torch
from torch import Tensor

from mpq.backends.c.compiler import SOURCES, compiled, compiler, run, version_of
from mpq.backends.c.fixed_point import Integers
from mpq.backends.c.rounded import one_tensor
from mpq.backends.c.tracing import decoded_trace, first_other, read_trace
from mpq.errors import ModelError
from mpq.network.examples import Batch

LAYERS: Final = "network.json"


@final
@dataclass(frozen=True, eq=False)
class Compiled:
    """See ``mpq.backends.runtime.Loaded``.

    Args:
        folder: What was exported.
        place: Where the compiled programs lie, as long as this does.
    """

    folder: Path
    place: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Compiles a folder and runs its check.

        Raises:
            ModelError: If it does not compile, or makes of its examples what it must not.
            MissingDependencyError: If there is no compiler.
        """
        made = cls(folder, Path(tempfile.mkdtemp(prefix="mpq-c-")))
        weakref.finalize(made, shutil.rmtree, made.place, ignore_errors=True)
        # It holds network.c itself, to read the weights out of it.
        compiled(folder, ("host.c", "kernels.c", "network_float.c"), made.program("host"))
        check = compiled(folder, ("check.c", *SOURCES), made.program("check"))
        try:
            run([str(check)])
        except ModelError as error:
            raise ModelError(
                f"c: the compiled network is not the integer simulation, bit for bit: {error}; "
                f"{first_other(made._told['steps'], made._trace('check'))}"
            ) from error
        return made

    def program(self, name: str) -> Path:
        """Where a compiled program lies."""
        return self.place / name

    @property
    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / LAYERS).read_text(encoding="utf-8"))
        return found

    @property
    def versions(self) -> Mapping[str, str]:
        """See ``Loaded.versions``."""
        return {compiler(): version_of(compiler())}

    @property
    def kinds(self) -> Mapping[str, str]:
        """See ``Loaded.kinds``."""
        return {name: f"{bits}-bit codes" for name, (bits, _) in self._decoded().items()}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """See ``Loaded.weights``."""
        return {name: weight for name, (_, weight) in self._decoded().items()}

    def _decoded(self) -> dict[str, tuple[int, Tensor]]:
        """Layer name to bits and weight, as the C decodes it."""
        names, found = self._told["layers"], {}
        rest = run([str(self.program("host")), "weights"])
        while rest:
            line, _, rest = rest.partition(b"\n")
            number, bits, rows, columns = map(int, line.split())
            size = 4 * rows * columns
            weight = np.frombuffer(rest[:size], dtype=np.float32).reshape(rows, columns)
            found[names[str(number)]] = (bits, torch.from_numpy(weight.copy()))
            rest = rest[size:]
        return found

    def run(self, batch: Batch) -> Tensor:
        """See ``Loaded.run``; refuses more than one tensor."""
        made = run([str(self.program("host")), "run"], _numbers(batch))
        outputs = np.frombuffer(made, dtype=np.float32).copy()
        return torch.from_numpy(outputs).reshape(batch.size, *self._told["output_shape"])

    def traced(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Traceable.traced``: by the names of the tensors in the network's graph."""
        return decoded_trace(self._told["steps"], self._trace("trace", _numbers(batch)))

    def _trace(self, what: str, given: bytes = b"") -> list[Integers]:
        return read_trace(self._told["steps"], run([str(self.program("host")), what], given))


def _numbers(batch: Batch) -> bytes:
    """Examples as the host program reads them."""
    return one_tensor(batch).detach().cpu().float().contiguous().numpy().tobytes()
