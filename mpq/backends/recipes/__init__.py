"""Recipes: what other tools' own quantizers take, as text. Not our codes: they round by themselves.

In: an ``Assignment``. Out: a file that one of their functions reads.
"""
