"""A newcomer sees at once what mixing buys."""

import mpq
from mpq import demo
from mpq.cli.task_options import DEMO_DEVICE, DEMO_LIMITS
from mpq.problem.limits import parse_limits


def test_the_demo_loses_five_times_less_than_any_uniform_precision_within_its_limits() -> None:
    """By measured divergence on held-out digits; at least one uniform precision fits as well."""
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out, DEMO_DEVICE)

    found = mpq.search(task, DEMO_LIMITS)

    tables = {limit: found.cost_table(limit.resource) for limit in parse_limits(DEMO_LIMITS)}
    fitting = [
        row.measured.divergence
        for row in found.comparisons
        if row.label not in ("original", "result")
        and all(row.costs[t.column] <= limit.resolve(t) for limit, t in tables.items())
    ]
    assert fitting
    assert 5 * found.measured.divergence <= min(fitting)
