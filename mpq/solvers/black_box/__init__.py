"""Solvers that ask what a whole assignment loses, predicted or measured.

In: a ``Problem`` and a function of assignments. Out: the best that was tried.
"""
