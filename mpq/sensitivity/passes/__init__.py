"""Forward and backward passes that estimators share.

In: a network, batches, candidates. Out: gradients, responses and inner products per layer.
"""
