"""Costs by measurements of single layers that somebody made.

In: rows of layer shape, format and seconds. Out: costs of layers, exact or interpolated.
"""
