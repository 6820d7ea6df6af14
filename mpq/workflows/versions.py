"""Which versions answer: what a number that others cannot repeat is asked for first."""

from importlib.metadata import version
from platform import python_version

import torch


def versions() -> dict[str, str]:
    """Package to version."""
    return {"mpq": version("mpq"), "torch": str(torch.__version__), "python": python_version()}
