"""Second derivatives of the loss, exact or by probes.

In: a network and batches. Out: traces and products of Hessian and Gauss-Newton blocks.
"""
