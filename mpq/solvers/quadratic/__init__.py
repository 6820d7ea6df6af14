"""Solvers of a loss in which errors of different layers add up or cancel.

In: a ``Problem`` with interactions. Out: a ``Solution``, with a bound where one is proved.
"""
