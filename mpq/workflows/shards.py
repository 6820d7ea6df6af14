"""One estimate by several jobs: each does a share of the batches, and the shares are merged."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mpq._support.cache import Cache
from mpq._support.events import Callback, listening
from mpq._support.shard import Shard
from mpq.errors import InputError
from mpq.network.halving import halved
from mpq.network.randomness import random_state_kept
from mpq.problem.limits import Limits, parse_limits
from mpq.sensitivity import ESTIMATORS, DivisibleEstimator, SensitivityEstimator
from mpq.sensitivity.passes.checkpoint import after
from mpq.sensitivity.passes.parts import OwnShare, Part, whole
from mpq.workflows.defaults import ESTIMATOR
from mpq.workflows.kept_estimates import KeptEstimate, check_divisible, partial_name
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task, check_task


def estimate_shard(
    task: Task,
    shard: str,
    limits: Limits = (),
    *,
    sensitivity: str | SensitivityEstimator = ESTIMATOR,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Does one share of an estimate's batches; the part that it writes lands in the task's cache.

    Called with ``1/4`` to ``4/4`` by four jobs on a shared folder, in any order, on machines of one
    kind; ``mpq.search`` of the same task then goes on from all four parts, with the numbers of one
    process up to the order of sums. Signs of probes are those of the examples' places, so that it
    does not matter who looks at an example.

    Args:
        task: As in ``mpq.search``, with a ``cache``.
        shard: Which share of how many, such as ``1/4``.
        limits: As in ``mpq.search``: what cannot be met is refused before the work.
        sensitivity: As in ``mpq.search``; one that adds up over batches.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Returns:
        The part's file; the estimate's, where that was there before.

    Raises:
        InputError: If something given cannot be used, there are fewer batches than shares, or the
            estimator cannot be split.
        InfeasibleError: If no assignment meets the limits.
        OutputError: If the part cannot be written.
    """
    check_task(task, "estimate_shard")
    share = Shard.parse(shard)
    if task.workers is not None:
        raise InputError(
            "a shard is a job of its own, which has no workers: leave out workers (--workers)"
        )
    built = sensitivity
    if isinstance(built, str):
        built = ESTIMATORS.build(built, task.seed)
    estimator = check_divisible(built, "--shard")
    if task.cache is None:
        raise InputError(
            "a shard's part has to be kept where the others are: name a folder that all of them "
            "share (--cache DIR)"
        )
    with listening(callbacks):
        return _collected(task, share, limits, estimator, Cache(task.cache))


@random_state_kept()
def _collected(
    task: Task, shard: Shard, limits: Limits, estimator: DivisibleEstimator, cache: Cache
) -> Path:
    prepared, parsed = Prepared.untransformed(task), parse_limits(limits)
    if parsed:
        prepared.constraints(parsed)
    prepared = prepared.with_transforms()
    on = prepared.asked
    kept = KeptEstimate.of(cache, on, estimator, task.seed)
    if (cache.folder / kept.file).exists():
        return cache.folder / kept.file
    num_batches = on.data.num_batches
    assert num_batches is not None  # the key has read all of them
    own = OwnShare(cache, kept.name, kept.key, shard, num_batches)
    if not own.path.exists():
        halved(
            f"share {shard} of the estimate ({estimator.name})",
            on.data,
            lambda data: estimator.collect(replace(on, data=data, division=own)),
            on.network.why_uncut,
        )
    return own.path


def merge(parts: Sequence[Path | str], cache: Path | str | None = None) -> Path:
    """Puts the parts of one estimate together, as ``mpq.search`` does by itself where all are.

    Needs neither the network nor its data, so that parts from folders of their own can be merged
    anywhere. ``mpq.search`` of the same task with that ``cache`` makes the table of it.

    Args:
        parts: Files that ``estimate_shard`` wrote, of all shares, in any order.
        cache: The folder for what comes out; default: that of the first part.

    Returns:
        The merged file.

    Raises:
        InputError: If there is no part, a share is missing, or two overlap.
        MismatchError: If they are of different networks, data, options or versions.
        FileFormatError: If a file is no part, or damaged.
        OutputError: If the file cannot be written.
    """
    paths = list(map(Path, parts))
    if not paths:
        raise InputError("merge takes the files that shards wrote (*.part), at least one")
    merged = whole(list(map(Part.load, paths)))
    into = Cache(paths[0].parent if cache is None else cache)
    name = partial_name(merged.key)
    into.must_write(name, after(merged.num_batches, merged.state))
    return into.folder / name
