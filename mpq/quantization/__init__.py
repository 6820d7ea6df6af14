"""Number formats, ranges and rounding.

In: tensors and a ``Precision``. Out: the same tensors with the values that the format can hold.
"""
