"""Rules that others use, to compare with.

In: a ``Problem``. Out: a ``Solution`` without a bound.
"""
