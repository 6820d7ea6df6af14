"""Questions that take several solutions: frontiers, alternatives, least cost.

In: a ``Problem`` and a solver. Out: solutions.
"""
