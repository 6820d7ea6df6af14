"""The page of a result: how large it is, how soon it is made, and how soon it is seen.

    OMP_NUM_THREADS=1 python benchmarks/page.py > benchmarks/page.json

Made-up results of 18, 500 and 2,000 layers with five candidates and a frontier of twelve points
are saved, and their page is made from the files. Each page is then opened from disk in a headless
chromium, five times with a profile of its own: milliseconds until the first contentful paint, and
until all pictures are drawn. Prints JSON, with the load of the machine and the versions. The
scripts of the pictures are put together before the clock starts; what that took is `scripts_s`.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mpq._support.files import write_files
from mpq.report.page.vega import vega_script
from mpq.report.save import save_result
from mpq.report.sections import frontier_files
from mpq.workflows.page.report import report
from tests.report.browser import opened, started
from tests.report.made_up import blocks, curve, made_up

LAYERS = (18, 500, 2000)
TIMES = 5
DRAWN = "#checks svg"


def main() -> None:
    start = time.perf_counter()
    vega_script()
    scripts_s = time.perf_counter() - start
    rows = [measured(count) for count in LAYERS]
    told = {
        "command": "python benchmarks/page.py",
        "packages": {name: version(name) for name in ("jinja2", "vl-convert-python", "playwright")},
        "load_average": os.getloadavg()[0],
        "scripts_bytes": len(vega_script().encode()),
        "scripts_s": round(scripts_s, 3),
        "pages": rows,
    }
    print(json.dumps(told, indent=1))


def measured(count: int) -> dict[str, Any]:
    """One page: made, and opened as often as asked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = made_up(blocks(count))
        frontier = curve(result)
        save_result(result, folder, frontier, ())
        write_files(folder, frontier_files(frontier, result.run_id))
        start = time.perf_counter()
        page = report([folder])
        made_s = time.perf_counter() - start
        seen = [opening(page) for _ in range(TIMES)]
        print(f"{count} layers: {seen}", file=sys.stderr)
        return {
            "layers": count,
            "page_bytes": page.stat().st_size,
            "made_from_files_s": round(made_s, 3),
            "first_paint_ms": sorted(round(paint) for paint, _ in seen),
            "all_drawn_ms": sorted(round(drawn) for _, drawn in seen),
        }


def opening(page: Path) -> tuple[float, float]:
    """Milliseconds to the first paint, and to the last picture."""
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    with started() as browser, opened(browser, page, DRAWN) as found:
        drawn_ms = found.number("performance.now()")
        return found.number(paint), drawn_ms


if __name__ == "__main__":
    main()
