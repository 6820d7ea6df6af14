"""Solvers of a loss that is a sum over layers: a multiple-choice knapsack.

In: a ``Problem`` without interactions. Out: a ``Solution`` with a bound.
"""
