"""How long the tests take on this machine, as JSON.

python scripts/suite_time.py          # all tests, and those of `make test-fast`
python scripts/suite_time.py fast     # one of them
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

SUITES = {"all": ("pytest", "-n", "2"), "fast": ("pytest", "-n", "2", "-m", "not slow")}
_PASSED = re.compile(r"(\d+) passed")


def passed(report: str) -> int:
    """How many tests passed, by the last line of pytest.

    >>> passed("======= 1526 passed, 9 deselected in 18.14s =======")
    1526
    """
    found = _PASSED.search(report)
    return int(found[1]) if found else 0


def timed(command: tuple[str, ...]) -> dict[str, Any]:
    """Runs a suite from the root of the checkout; its output goes to standard error."""
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - start
    sys.stderr.write(ran.stdout)
    if ran.returncode:
        sys.exit(f"{' '.join(command)} failed, so that its time means nothing")
    last = ran.stdout.rstrip().splitlines()[-1]
    return {
        "command": " ".join(command),
        "tests_passed": passed(last),
        "wall_seconds": round(seconds, 1),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


if __name__ == "__main__":
    names = sys.argv[1:] or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        sys.exit(f"expected {' or '.join(SUITES)}, got {unknown[0]}")
    print(json.dumps([timed(SUITES[name]) for name in names], indent=1))
