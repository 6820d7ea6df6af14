"""Why no precision may meet a limit on latency."""

from mpq.hardware_profiles import Pricing, Roofline
from mpq.problem.constraints import Constraints


def launch_hint(pricing: Pricing, constraints: Constraints) -> str:
    """Says so where no precision helps because starting the layers takes most of a latency."""
    limits = {budget.resource: budget.limit for budget in constraints.budgets}
    # Measured latencies have the launches in them, and nobody can tell how much they are.
    if not isinstance(pricing.profile, Roofline) or "latency" not in limits:
        return ""
    calls = sum(layer.calls for layer in pricing.layers)
    launches_s = calls * pricing.profile.launch_overhead_s.value
    # below half of the limit, a larger batch would not be what helps most
    if launches_s < 0.5 * limits["latency"]:
        return ""
    return (
        f". Starting {calls} layers takes {launches_s:.3g} seconds at any precision; "
        "a larger batch size hides it"
    )
