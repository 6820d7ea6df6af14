"""A trained model, its examples and its layers.

In: the user's ``nn.Module`` and data. Out: a ``Network`` with its ``Layer`` list, traces, metrics.
"""
