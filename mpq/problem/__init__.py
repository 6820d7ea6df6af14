"""The question as numbers: tables, budgets, the problem, its solution. No torch.

In: cost tables and limits. Out: a ``Problem`` for solvers, an ``Assignment`` for backends.
"""
