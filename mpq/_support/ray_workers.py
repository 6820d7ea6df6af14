"""Tasks on the workers of a Ray cluster."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Final, TypeVar, final

from mpq._support.workers import Workers
from mpq.errors import MissingDependencyError, WorkerError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Found = TypeVar("Found")

RETRIES: Final = 5
"""How often a task is begun again whose worker was killed."""


@contextmanager
def task_workers(asked: Workers | None) -> Iterator["RayWorkers | None"]:
    """Within this block tasks may run on a Ray cluster, if that is asked for."""
    if asked is None or asked.kind != "ray":
        yield None
        return
    ray = _ray()
    was_joined = ray.is_initialized()
    try:
        yield RayWorkers(ray, asked)
    finally:
        if not was_joined:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "--workers ray needs the package ray: pip install 'mpq[ray]'"
        ) from None
    return ray


def _join(ray: Any, asked: Workers) -> None:
    quiet = {"logging_level": "error", "log_to_driver": False}
    if asked.address:
        try:
            ray.init(asked.address, **quiet)
        except (ConnectionError, RuntimeError, ImportError, ValueError) as error:
            raise WorkerError(
                f"cannot join the Ray cluster at {asked.address}: {str(error).splitlines()[0]}; "
                "start one there by `ray start --head`, or leave the address out (--workers ray)"
            ) from error
        return
    # By the environment (RAY_ADDRESS) it joins a cluster that runs, unless workers are counted.
    count = {"num_cpus": asked.count, "address": "local"} if asked.count else {}
    ray.init(include_dashboard=False, **count, **quiet)


@final
class RayWorkers:
    """``TaskWorkers`` of a cluster: one that this process is in, one by its address, or one here.

    It is joined, or started, when it is first asked: an estimate that is kept asks nothing.

    Args:
        ray: The package.
        asked: Which cluster.
    """

    def __init__(self, ray: Any, asked: Workers) -> None:
        self._ray, self._asked = ray, asked

    @cached_property
    def count(self) -> int:
        """How many tasks run at a time.

        Raises:
            WorkerError: If the cluster at the address cannot be joined.
        """
        if not self._ray.is_initialized():
            _join(self._ray, self._asked)
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def sent(
        self, shared: Shared, call: Callable[[Shared, Task], Found]
    ) -> Callable[[Sequence[Task]], Iterator[Found]]:
        """See ``TaskWorkers``."""
        ray, _ = self._ray, self.count
        _by_value(ray.cloudpickle)
        try:
            # Once into the store of objects, from which each worker takes it once.
            place = ray.put(ray.cloudpickle.dumps((shared, call)))
        except (TypeError, AttributeError, ray.exceptions.RaySystemError) as error:
            raise WorkerError(
                f"the network or its data cannot be sent to workers: {error}; leave --workers out, "
                "or define them in a module without open files, locks and generators"
            ) from error
        return partial(self._results, place)

    def _results(self, place: Any, tasks: Sequence[Task]) -> Iterator[Any]:
        import torch

        ray = self._ray
        threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // self.count))
        run = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        # In a list, so that Ray hands on the reference and not what is behind it.
        waiting = [run.remote([place], threads, ray.cloudpickle.dumps(task)) for task in tasks]
        try:
            while waiting:
                (done, *_), waiting = ray.wait(waiting, num_returns=1)
                yield self._got(done)
        finally:
            for left in waiting:
                ray.cancel(left, force=False)

    def _got(self, done: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(done)
        except errors.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, Exception) else error) from None
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            raise WorkerError(
                f"a worker died {RETRIES + 1} times at one task (memory?): "
                f"{str(error).splitlines()[0]}; take fewer workers"
            ) from error


def _by_value(cloudpickle: Any) -> None:
    """Modules that were loaded from a file's path are on no worker: their classes travel along."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mpq_user_"):
            cloudpickle.register_pickle_by_value(module)


_SHARED: dict[str, Any] = {}
"""What this worker has taken from the store, by its reference; the last one only."""


def _run(place: list[Any], threads: int, packed: bytes) -> Any:
    """On a worker."""
    import pickle

    import ray
    import torch

    torch.set_num_threads(threads)
    reference = place[0]
    if reference.hex() not in _SHARED:
        _SHARED.clear()
        _SHARED[reference.hex()] = pickle.loads(ray.get(reference))
    shared, call = _SHARED[reference.hex()]
    return call(shared, pickle.loads(packed))
