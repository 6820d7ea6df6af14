"""The version of every file format that we write: its ``schema_version``.

A reader says which version it found and which it reads; what has no version is not ours.
"""

from typing import Final

ASSIGNMENT: Final = 3
"""``assignment.json``; 1 and 2 are read, whose fingerprint was of the layers only."""
COST_TABLE: Final = 1
"""Cost tables as JSON."""
DEVICE_PROFILE: Final = 1
"""Devices as JSON."""
EVENTS: Final = 1
"""Lines of a log of events."""
ESTIMATORS: Final = 1
"""``estimators.json``: a comparison of estimators."""
EVOLVED_PROXY: Final = 1
"""``proxy.json``: what ``mpq evolve-proxy`` found."""
FRONTIER: Final = 1
"""``frontier.json``, which only others read."""
JOURNAL: Final = 2
"""Journals of measurements, one JSON line a row; in 1, rows had no checksum."""
LOSS_BENCHMARK: Final = 1
"""Assignments with measured losses, by ``mpq compare --save-bench``."""
MADE: Final = 1
"""``made.json``: the command of a run, and what it took."""
MEASURED_TABLE: Final = 1
"""Tables of measured layers."""
NETWORK_PROFILE: Final = 1
"""Profiles of one network, by ``mpq profile``."""
PROBLEM: Final = 2
"""``problem.json``; 1 is read."""
RECIPES: Final = 1
"""``recipes.json``: a comparison of recipes."""
RESULT: Final = 2
"""``result.json`` of a run; a folder of version 1 has none."""
