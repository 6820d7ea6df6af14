"""Layers that are key-value caches: what they may become, and who prices them."""

import warnings
from collections.abc import Iterable, Sequence

from mpq.errors import InputError
from mpq.hardware_profiles.pricing import DEVICE_RESOURCES, Pricing
from mpq.network.layer import Layer
from mpq.quantization.precision import Precision
from mpq.sensitivity import ESTIMATORS, SensitivityEstimator
from mpq.workflows.task import Task


def cache_candidates(layers: Sequence[Layer], task: Task) -> dict[str, tuple[Precision, ...]]:
    """Candidates of those of the layers that are caches, by name."""
    if task.kv_cache is None:
        return {}
    return {layer.name: task.kv_cache.precisions for layer in layers if layer.is_cache}


def check_prices_caches(estimator: SensitivityEstimator, task: Task) -> None:
    """Refuses an estimator to which a layer without weights costs nothing, or has no meaning.

    Raises:
        InputError: If the task has a key-value cache, and the estimator prices none.
    """
    if task.kv_cache is None or estimator.prices_caches:
        return
    able = ", ".join(part.name for part in ESTIMATORS if part.prices_caches)
    raise InputError(
        f"the estimator {estimator.name!r} prices weights, which a key-value cache has none of: "
        f"take {able}, or leave out kv_cache (--kv-cache)"
    )


def warn_of_cache(pricing: Pricing, resources: Iterable[str]) -> None:
    """Says so where a limit on time or energy knows of no key-value cache that is searched."""
    limited = [resource for resource in resources if resource in DEVICE_RESOURCES]
    if pricing.kv_cache is None or pricing.decodes or not limited:
        return
    warnings.warn(
        f"{' and '.join(limited)} leave out the key-value cache and the products with it, which "
        "are counted for estimated devices that multiply floating point numbers, where a token is "
        "decoded (phase='decode', --phase decode)",
        stacklevel=3,
    )
