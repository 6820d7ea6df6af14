"""Estimates that are kept on disk: another limit, solver or device takes none of their passes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, final

from mpq._support.cache import Cache
from mpq._support.json_arrays import decoded, encoded
from mpq._support.ranks import Ranks
from mpq._support.shard import Shard
from mpq.errors import InputError
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.split import Split
from mpq.quantization.channel_bits import OUTPUTS
from mpq.sensitivity import (
    ESTIMATORS,
    DivisibleEstimator,
    Estimation,
    Sensitivity,
    SensitivityEstimator,
    SpotCheck,
)
from mpq.sensitivity.passes.checkpoint import Checkpoint, after
from mpq.sensitivity.passes.parts import Part, parts_of, whole
from mpq.sensitivity.passes.rank_share import RankShare
from mpq.sensitivity.step_shares import StepShares
from mpq.workflows.cache_keys import key_of, network_parts


@final
@dataclass(frozen=True, eq=False)
class KeptEstimate:
    """Where one estimate is kept, and what there is of it.

    Args:
        cache: The folder.
        key: All that determines the estimate, as checksums.
    """

    cache: Cache
    key: Mapping[str, str]

    @classmethod
    def of(cls, cache: Cache, on: Estimation, estimator: SensitivityEstimator, seed: int) -> Self:
        """Of what an estimator is asked."""
        parts = network_parts(on.network, on.data, on.quantizer, on.candidates)
        divided = {} if on.split is None else {"divides": _parts_of(on.split)}
        scored = {"score": on.score_key} if estimator.asks_score else {}
        return cls(cache, {**parts, **divided, **scored, "by": repr(estimator), "seed": str(seed)})

    @property
    def name(self) -> str:
        """A checksum of the key, with which all files of this estimate begin."""
        return key_of(self.key)

    @property
    def file(self) -> str:
        """Name of the estimate itself."""
        return f"{self.name}.estimate"

    @property
    def checkpoint(self) -> Checkpoint:
        """What there is of it until it is made."""
        return Checkpoint(self.cache, partial_name(self.key))

    def read(self) -> Sensitivity | None:
        """The estimate, if it is there.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self.cache.read(self.file)
        return None if content is None else _from_dict(json.loads(content))

    def write(self, found: Sensitivity) -> None:
        """Keeps it; what there was until then is removed.

        Raises:
            OutputError: If that cannot be.
        """
        self.cache.write(self.file, json.dumps(_to_dict(found)).encode())
        self.checkpoint.remove()
        for path in parts_of(self.cache.folder, self.name):
            self.cache.remove(path.name)

    def merge(self) -> None:
        """Makes a checkpoint of parts that several processes left, if there are any.

        Raises:
            InputError: If one is missing, or two overlap.
        """
        found = parts_of(self.cache.folder, self.name)
        if found:
            merged = whole(list(map(Part.load, found)))
            content = after(merged.num_batches, merged.state)
            self.cache.must_write(partial_name(self.key), content)


def partial_name(key: Mapping[str, str]) -> str:
    """Of the file with what there is of an estimate until it is made."""
    return f"{key_of(key)}.partial"


def kept_estimate(
    on: Estimation,
    estimator: SensitivityEstimator,
    seed: int,
    make: Callable[[Estimation], Sensitivity],
    cache: Cache | None,
) -> Sensitivity:
    """What an estimator found before of the same network, or finds now.

    An estimator that is not mpq's own is asked every time: what it depends on besides is not known.

    Args:
        on: What is asked of it.
        estimator: Whose answer it is.
        seed: Which cells are measured as a check.
        make: Asks it, and checks the answer. The sketch goes on where a run was killed, or from
            what several processes left.
        cache: Where answers are; ``None``: nowhere.

    Raises:
        InputError: If some of several processes have left nothing yet.
        OutputError: If the cache cannot be read or written.
    """
    if on.ranks is not None:
        on = replace(on, division=rank_share(on, estimator, on.ranks))
    if cache is None or not is_kept(estimator):
        return make(on)
    kept = KeptEstimate.of(cache, on, estimator, seed)
    if on.ranks is not None:
        return _by_ranks(kept, on, make, on.ranks)
    known = kept.read()
    if known is not None:
        return known
    kept.merge()
    found = make(replace(on, division=kept.checkpoint))
    kept.write(found)
    return found


def _by_ranks(
    kept: KeptEstimate, on: Estimation, make: Callable[[Estimation], Sensitivity], ranks: Ranks
) -> Sensitivity:
    # One of them looks: another process may write the file between two looks.
    known = ranks.from_first(kept.read() if ranks.is_first else None)
    if isinstance(known, Sensitivity):
        return known
    found = make(on)
    if ranks.is_first:
        kept.write(found)
    return found


def _parts_of(split: Split) -> str:
    # Of channels all have the same prices, however they are put together.
    return "yes" if split.axis == OUTPUTS else str(split)


def rank_share(on: Estimation, estimator: SensitivityEstimator, ranks: Ranks) -> RankShare:
    """The batches of this rank.

    Raises:
        InputError: If the estimator cannot be split, or there are fewer batches than ranks.
    """
    check_divisible(estimator, "torchrun")
    _ = on.data.num_examples  # reads the data, which counts the batches
    num_batches = on.data.num_batches
    assert num_batches is not None
    # For its refusal: a rank without a batch would not meet an error that all others meet.
    Shard(ranks.size, 1).span(num_batches, "batches")
    return RankShare(ranks)


def check_divisible(estimator: SensitivityEstimator, option: str) -> DivisibleEstimator:
    """An estimator that can be split, as an option asks for.

    Raises:
        InputError: If it cannot.
    """
    # What others depend on is not known, so that their parts cannot be told apart.
    if isinstance(estimator, DivisibleEstimator) and is_kept(estimator):
        return estimator
    able = [part.name for part in ESTIMATORS if issubclass(part, DivisibleEstimator)]
    raise InputError(
        f"{option} splits what adds up over batches, and the estimator {estimator.name!r} cannot "
        f"be split so; take {', '.join(able)}, or leave {option} out"
    )


def is_kept(estimator: SensitivityEstimator) -> bool:
    """Whether all that an estimator depends on is known."""
    return type(estimator).__module__.startswith("mpq.")


def _to_dict(found: Sensitivity) -> dict[str, Any]:
    kept = found.interactions, found.standard_error, found.by_channels
    interactions, error, other = (None if part is None else part.to_dict() for part in kept)
    return {
        "table": found.table.to_dict(),
        "interactions": interactions,
        "standard_error": error,
        "check": None if found.check is None else asdict(found.check),
        "by_channels": other,
        "channels": {name: encoded(parts) for name, parts in found.channels.items()},
        "steps": None if found.steps is None else found.steps.to_dict(),
    }


def _from_dict(data: dict[str, Any]) -> Sensitivity:
    interactions, error, check = data["interactions"], data["standard_error"], data["check"]
    other = data["by_channels"]
    return Sensitivity(
        CostTable.from_dict(data["table"]),
        None if interactions is None else Interactions.from_dict(interactions),
        None if error is None else CostTable.from_dict(error),
        None if check is None else SpotCheck.from_dict(check),
        None if other is None else CostTable.from_dict(other),
        {name: decoded(parts) for name, parts in data["channels"].items()},
        StepShares.from_dict(data.get("steps")),
    )
