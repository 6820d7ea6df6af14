"""Layers without weights, caches and operands: what they may become, and who prices them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

from mpq._support.events import warn
from mpq.errors import InputError
from mpq.hardware_profiles.pricing import DEVICE_RESOURCES, Pricing
from mpq.network.layer import Layer
from mpq.quantization.operand_formats import INPUTS, operand_precision
from mpq.quantization.precision import Precision
from mpq.sensitivity import ESTIMATORS, SensitivityEstimator
from mpq.workflows.task import Task


def cache_candidates(layers: Sequence[Layer], task: Task) -> dict[str, tuple[Precision, ...]]:
    """Candidates of those of the layers that are caches, by name."""
    if task.kv_cache is None:
        return {}
    return {layer.name: task.kv_cache.precisions for layer in layers if layer.is_cache}


@final
@dataclass(frozen=True)
class OwnCandidates:
    """Layers whose precision is given, or whose candidates are.

    Args:
        fixed: Layer to its precision.
        allowed: Layer to its candidates.
    """

    fixed: dict[str, Precision]
    allowed: dict[str, tuple[Precision, ...]]

    @classmethod
    def of(
        cls,
        layers: Sequence[Layer],
        task: Task,
        fixed: Mapping[str, Precision],
        allowed: Mapping[str, tuple[Precision, ...]],
    ) -> Self:
        """With those of layers without weights, which take what is given or have their own.

        Args:
            layers: The network's.
            task: Says what caches and operands may become.
            fixed: As the task's rules have it.
            allowed: The same.

        Raises:
            PrecisionError: If an operand is given a format of layers alone.
        """
        fixed, allowed = dict(fixed), cache_candidates(layers, task) | dict(allowed)
        for name in (layer.name for layer in layers if layer.is_operand):
            # A rule such as '*=w4a8' is meant for weights as well.
            given = allowed.get(name, task.precisions)
            allowed[name] = tuple(dict.fromkeys(map(operand_precision, given)))
            if name in fixed:
                fixed[name] = operand_precision(fixed[name])
        return cls(fixed, allowed)


def check_prices_caches(estimator: SensitivityEstimator, task: Task) -> None:
    """Refuses an estimator to which a layer without weights costs nothing, or has no meaning.

    Raises:
        InputError: If the task has a key-value cache, and the estimator prices none.
    """
    if estimator.prices_caches or (task.kv_cache is None and task.activations == INPUTS):
        return
    what, leave = (
        ("a key-value cache has none", "leave out kv_cache (--kv-cache)")
        if task.kv_cache is not None
        else ("operands have none", "round inputs alone (--activations inputs)")
    )
    able = ", ".join(part.name for part in ESTIMATORS if part.prices_caches)
    raise InputError(
        f"the estimator {estimator.name!r} prices weights, which {what} of: take {able}, or {leave}"
    )


def warn_of_cache(pricing: Pricing, resources: Iterable[str]) -> None:
    """Says so where a limit on time or energy knows of no key-value cache, or of a part of it."""
    limited = [resource for resource in resources if resource in DEVICE_RESOURCES]
    cache, at_once = pricing.kv_cache, pricing.workload.batch_size
    if cache is None or not limited:
        return
    if not pricing.decodes:
        warn(
            f"{' and '.join(limited)} leave out the key-value cache and the products with it, "
            "which are counted for estimated devices that multiply floating point numbers, where a "
            "token is decoded (phase='decode', --phase decode)",
            stacklevel=3,
        )
    elif cache.batch_size > at_once:
        warn(
            f"the key-value cache holds {cache.batch_size} sequences (--kv-batch-size), and "
            f"{' and '.join(limited)} are of decoding {at_once} at once (--batch-size)",
            stacklevel=3,
        )
