"""Small matrices on one thread: faster, and the same last digits on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread: with a few hundred rows, threads only wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield
