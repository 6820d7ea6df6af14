"""The verbs: search, compare, evaluate, refine. Joins all stages, draws and prints nothing.

In: a model, data, limits. Out: a result.
"""
