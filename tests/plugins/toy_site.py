"""A folder of installed packages, with the toys and what ``pip`` writes about them."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TOYS = Path(__file__).with_name("toys")
ENTRY_POINTS = """
[mpq.formats]
fp6_toy = mpq_toys.number_format:TOY
[mpq.ranges]
toy-share = mpq_toys.range_method:ToyRange
[mpq.estimators]
toy-estimator = mpq_toys.estimator:ToyEstimator
[mpq.solvers]
toy-solver = mpq_toys.solver:ToySolver
[mpq.metrics]
toy-metric = mpq_toys.metric:ToyMetric
[mpq.data_sources]
toy-source = mpq_toys.data_source:ToySource
[mpq.backends]
toy-backend = mpq_toys.backend:ToyBackend
[mpq.runtimes]
toy-runtime = mpq_toys.runtime:ToyRuntime
[mpq.report_sections]
toy-section = mpq_toys.section:ToySection
"""
FEW_EXAMPLES = """
from mpq import demo

def calibration():
    images, labels = next(demo.calibration())
    yield images[:16], labels[:16]
"""


@dataclass(frozen=True)
class ToySite:
    """Where the toys are installed.

    Args:
        folder: On the path of everything that is run; the working folder too.
        root: The repository.
    """

    folder: Path
    root: Path

    @classmethod
    def made(cls, folder: Path, root: Path) -> "ToySite":
        """Installs the toys, and a module ``few`` with data that a search takes seconds with."""
        shutil.copytree(TOYS, folder / "mpq_toys", ignore=shutil.ignore_patterns("__pycache__"))
        about = folder / "mpq_toys-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mpq-toys\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(ENTRY_POINTS)
        (folder / "few.py").write_text(FEW_EXAMPLES)
        return cls(folder, root)

    def python(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Runs Python in a process of its own, beside the toys."""
        path = os.pathsep.join(map(str, (self.folder, self.root)))
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
            cwd=self.folder,
        )

    def mpq(self, *arguments: str | Path) -> str:
        """Standard output of a command that succeeds."""
        found = self.python("-m", "mpq.cli", *arguments)
        assert found.returncode == 0, found.stderr
        return found.stdout

    def refused(self, *arguments: str | Path) -> str:
        """The message of a command that is refused."""
        found = self.python("-m", "mpq.cli", *arguments)
        assert found.returncode == 2, found.stdout
        return found.stderr
