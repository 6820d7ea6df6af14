"""Draw the picture of the README: mixed precision against uniform precision on the demo.

    python scripts/readme_picture.py

Searches the frontier of the built-in network over bytes of weights, measures every point on the
held-out images, and writes docs/images/frontier.png.
"""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import mpq
from mpq import demo
from mpq.report.frontier import Frontier, FrontierPoint

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "frontier.png"
LATENCY_S = 4.7e-3
WEIGHTS_KIB = 60
"""Limits of the demo, so that the picture shows what its search chooses from."""


def main() -> None:
    """Searches, measures, draws."""
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out, device="cortex-m7")
    limits = {"latency": LATENCY_S}
    frontier = mpq.frontier(task, "weight_bytes", limits, num_points=30, measure=True)
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    draw(axes, frontier)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    # without the date and version that matplotlib adds, the same numbers give the same file
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def draw(axes: Axes, frontier: Frontier) -> None:
    """Measured loss over kibibytes; uniform precisions are named."""
    axes.plot(*_points(frontier.points), "o-", color="C0", label="mixed precision, within 4.7 ms")
    uniform = tuple(point for point in frontier.others if point.label != "result")
    axes.plot(*_points(uniform), "s", color="C3", label="uniform precision")
    for point, x, y in zip(uniform, *_points(uniform), strict=True):
        axes.annotate(point.label, (x, y), xytext=(6, 4), textcoords="offset points")
    axes.axvline(WEIGHTS_KIB, color="0.4", ls="--", label=f"a budget of {WEIGHTS_KIB} KiB")
    axes.margins(x=0.1, y=0.1)  # room for labels at the edges
    axes.set_yscale("log")  # divergences span four orders of magnitude
    axes.set_xlabel("stored [KiB]")
    axes.set_ylabel("KL divergence, held out [nats]")
    axes.legend()
    axes.grid(alpha=0.3)


def _points(points: tuple[FrontierPoint, ...]) -> tuple[list[float], list[float]]:
    measured = [point.measured for point in points]
    return (
        [point.cost / 1024 for point in points],
        [found.divergence for found in measured if found is not None],
    )


if __name__ == "__main__":
    main()
