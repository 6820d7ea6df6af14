"""Costs by peak rates, bandwidths and utilisations of a data sheet.

In: a device's numbers, layers, precisions. Out: estimated seconds, bytes and joules.
"""
