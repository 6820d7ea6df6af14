"""Portable C for microcontrollers: a trained network as C99 without floating point.

``reading`` finds the steps of a network, ``formats`` how each tensor between them is stored,
``fixed_point`` the numbers without a comma, ``arena`` where tensors lie, ``source`` the text;
``integer`` computes the same in numpy, and ``rounded`` the same in floating point.
"""
