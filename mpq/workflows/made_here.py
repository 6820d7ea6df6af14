"""How a run of this process came about: its phases, and versions, which others ask for first."""

from importlib.metadata import version
from platform import python_version

import torch

from mpq._support.phases import Phases
from mpq.report.page.made import Made


def made_here(phases: Phases) -> Made:
    """Of a call from Python; a command adds its words (``Made.by``)."""
    versions = {"mpq": version("mpq"), "torch": str(torch.__version__), "python": python_version()}
    return Made(phases=phases.in_order, versions=versions)
