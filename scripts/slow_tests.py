"""Writes tests/slow.txt: the tests that `make test-fast` leaves out, by how long they took.

    python -m pytest --durations=0 --durations-min=0.01 > durations.txt
    python scripts/slow_tests.py durations.txt > tests/slow.txt

A test function is slow if all its cases together take more than a second and a half.
`tests/conftest.py` marks those that the list names, so that nobody has to keep a marker beside a
test up to date.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

SLOW_SECONDS = 1.5
_LINE = re.compile(r"^([\d.]+)s (?:call|setup|teardown) +(\S+?)(?:\[.*)?$")
_HEADER = "# Made by scripts/slow_tests.py of the durations of a whole run; not edited by hand."


def slow_tests(report: str) -> list[str]:
    """Names ``file::function`` whose cases take too long together.

    >>> slow_tests("1.50s call     tests/a.py::test_x[1]\\n0.60s setup    tests/a.py::test_x[2]")
    ['tests/a.py::test_x']
    """
    seconds: dict[str, float] = defaultdict(float)
    for line in report.splitlines():
        found = _LINE.match(line.strip())
        if found:
            seconds[found[2]] += float(found[1])
    return sorted(name for name, spent in seconds.items() if spent > SLOW_SECONDS)


if __name__ == "__main__":
    print("\n".join([_HEADER, *slow_tests(Path(sys.argv[1]).read_text(encoding="utf-8"))]))
