"""Prices of a network's layers: on a device, or without one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import fsum
from typing import final

import numpy as np

from mpq.errors import InputError, UnknownNameError
from mpq.hardware_profiles.file_bytes import NO_TARGET, FilePrices, file_table
from mpq.hardware_profiles.kv_cache_bytes import (
    CACHE_RESOURCES,
    KV_CACHE_BYTES,
    NO_CACHE,
    cache_bytes,
    cache_table,
    weight_and_cache_table,
    with_caches,
)
from mpq.hardware_profiles.linear import (
    LINEAR_RESOURCES,
    WEIGHT_BYTES,
    StoredBits,
    linear_amounts,
    linear_cost,
    packed_bits,
)
from mpq.hardware_profiles.peak_ram import (
    FLASH,
    PEAK_RAM,
    flash_amounts,
    flash_table,
    peak_ram_bytes,
    peak_ram_tables,
    undominated,
)
from mpq.hardware_profiles.profile import Profile
from mpq.network.layer import Layer, weighted
from mpq.network.liveness import Lifetimes
from mpq.network.workload import Workload, tokens_of
from mpq.problem.budget import FILE_BYTES, Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import Limit
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.precision import Precision

DEVICE_RESOURCES = ("latency", "energy")
"""What only a device prices."""
RESOURCES = (
    *DEVICE_RESOURCES, *LINEAR_RESOURCES, *CACHE_RESOURCES, FLASH, FILE_BYTES, PEAK_RAM,
)  # fmt: skip
"""Everything that a budget can limit."""


@final
@dataclass(frozen=True)
class Pricing:
    """What these layers cost, in any resource.

    Args:
        layers: ``L`` layers, as they were traced.
        profile: The device, or ``None``: then only resources that need none.
        workload: What is run at once. Its batch size is for latency and energy; its tokens are
            for all resources, which elsewhere are of one example.
        lifetimes: Steps in which the network's tensors are held, for ``peak_ram``.
        num_unquantized: Parameters beside the layers' weights, for ``flash``.
        stored_bits: Bits of a layer's weight at a precision that is not fp32; by default packed as
            tightly as can be.
        constant_bytes: Size of all that is stored besides the layers' weights, for
            ``weight_bytes``: what the network takes at any precision. ``flash`` has none of it.
        file: Sizes of a deployment target's files, for ``file_bytes``; or why there are none.
        kv_cache: How many tokens the key-value cache holds; ``None``: it is not searched.

    Raises:
        InputError: If the workload has a phase, and no layer a token axis, or decodes more
            sequences than the cache holds.
    """

    layers: tuple[Layer, ...]
    profile: Profile | None = None
    workload: Workload = field(default_factory=Workload)
    lifetimes: Lifetimes | None = None
    num_unquantized: int = 0
    constant_bytes: int = 0
    stored_bits: StoredBits = packed_bits
    file: FilePrices | str = NO_TARGET
    kv_cache: KVCache | None = None

    def __post_init__(self) -> None:
        # Else a phase would change nothing, and the user believe that it did.
        if self.workload.phase and not any(map(tokens_of, self.layers)):
            raise InputError(
                f"phase {self.workload.phase} needs a layer that reads tokens (an embedding, or a "
                "linear layer whose input has an axis of tokens), and this network has none: "
                "leave phase and tokens out"
            )
        cache, batch_size = self.kv_cache, self.workload.batch_size
        if self.workload.phase == "decode" and cache and cache.batch_size < batch_size:
            raise InputError(
                f"{batch_size} sequences are decoded at once (batch_size, --batch-size), and the "
                f"key-value cache holds {cache.batch_size}: give it as many (KVCache(batch_size="
                f"{batch_size}), --kv-batch-size {batch_size})"
            )

    @property
    def _layers(self) -> tuple[Layer, ...]:
        """The layers at the workload's tokens."""
        return tuple(map(self.workload.of, self.layers))

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources that can be priced."""
        on_device = self.profile.resources if self.profile else ()
        in_files = () if isinstance(self.file, str) else (FILE_BYTES,)
        peak = (PEAK_RAM,) if self.lifetimes else ()
        caches = () if self.kv_cache is None else CACHE_RESOURCES
        return (*on_device, *LINEAR_RESOURCES, *caches, FLASH, *in_files, *peak)

    @property
    def sums(self) -> tuple[str, ...]:
        """Those that are one sum over layers, hence one table; ``peak_ram`` is a maximum."""
        return tuple(name for name in self.resources if name != PEAK_RAM)

    def column(self, resource: str, candidates: Sequence[Precision]) -> str:
        """Name of a resource with its unit, such as ``latency_seconds``; arguments as ``tables``.

        Raises:
            InputError: If the resource needs a device, and there is none.
            UnknownNameError: If there is no such resource.
        """
        # A maximum over steps has no table of its own to say the unit.
        if resource == PEAK_RAM:
            return f"{PEAK_RAM}_bytes"
        return self.table(resource, candidates).column

    def tables(
        self, resource: str, candidates: Sequence[Precision], ties: Sequence[Sequence[str]] = ()
    ) -> tuple[CostTable, ...]:
        """``[L, B]`` each: of ``peak_ram`` one for every step, of any other resource one.

        Args:
            resource: One of ``RESOURCES``.
            candidates: ``B`` precisions.
            ties: Layers that share a precision.

        Raises:
            InputError: If the resource needs a device or lifetimes, and there are none.
            UnknownNameError: If there is no such resource.
        """
        if resource != PEAK_RAM:
            return (self.table(resource, candidates),)
        lifetimes, batch_size = self._lifetimes, self.workload.batch_size
        # The layers as traced: `_lifetimes` has refused any other number of tokens.
        steps = peak_ram_tables(lifetimes, self.layers, candidates, batch_size, ties)
        return tuple(map(self._runnable, steps))

    def budget(
        self, limit: Limit, candidates: Sequence[Precision], ties: Sequence[Sequence[str]] = ()
    ) -> Budget:
        """A limit over the candidates; it may be relative to a precision that is none of them.

        Args:
            limit: As the user wrote it.
            candidates: ``B`` precisions.
            ties: Layers that share a precision.

        Raises:
            LimitError: If the limit's unit does not fit, or the device cannot run its reference.
            InputError: If the resource needs a device or lifetimes, and there are none.
            UnknownNameError: If there is no such resource.
        """
        # The reference of a relative limit needs a column, though no layer may become it.
        reference = () if limit.reference is None else (limit.reference,)
        # Without repetitions, as a table refuses to have a precision twice.
        wide = self.tables(limit.resource, tuple(dict.fromkeys((*candidates, *reference))), ties)
        tables = tuple(table.select(candidates) for table in wide)
        # After the limit is resolved below on all steps: what is dominated among the candidates may
        # be the peak at the reference.
        kept = undominated(tables, ties) if len(tables) > 1 else tables
        return Budget(limit.resource, kept, limit.resolve(*wide))

    @property
    def _lifetimes(self) -> Lifetimes:
        if self.lifetimes is None:
            raise InputError(f"{PEAK_RAM} needs a network that was traced: find it by Network.of")
        if self.workload.phase:
            raise InputError(
                f"{PEAK_RAM} is known for examples as long as those that were traced: leave phase "
                "and tokens out"
            )
        return self.lifetimes

    def table(self, resource: str, candidates: Sequence[Precision]) -> CostTable:
        """``[L, B]`` cost of a resource; ``nan`` where the device cannot run a layer.

        Raises:
            InputError: If the resource needs a device or a target and there is none, or one that
                does not say, or is no sum over layers.
            UnknownNameError: If there is no such resource.
        """
        # Everything is refused here, so that the branches below need no further cases.
        check_sum(resource, self.profile is not None)
        if resource == FLASH:
            return self._runnable(self._flash(candidates))
        if resource == FILE_BYTES:
            return self._runnable(self._file(candidates))
        if resource in LINEAR_RESOURCES:
            return self._runnable(self._linear(resource, candidates))
        if resource in CACHE_RESOURCES:
            return self._runnable(self._caches(resource, candidates))
        assert self.profile is not None
        # The layers as traced: a profile applies the workload itself. It knows of no operand.
        found = self.profile.cost(resource, weighted(self.layers), candidates, self.workload)
        return with_caches(found, self.layers, self._attention(resource))

    def uncertainty(self, resource: str, candidates: Sequence[Precision]) -> CostTable | None:
        """``[L, B]`` half widths of 95 % intervals, ``nan``: unknown; ``None`` if all are."""
        if self.profile is None or resource not in self.profile.resources:
            return None
        found = self.profile.uncertainty(resource, weighted(self.layers), candidates, self.workload)
        found = with_caches(found, self.layers, _nothing)
        # All unknown is the same as no answer: reports leave the column out.
        return None if np.isnan(found.values).all() else found

    @property
    def decodes(self) -> bool:
        """Whether latency and energy count the attention of a new token."""
        profile = self.profile
        is_known = profile is not None and any(map(profile.attention, profile.resources))
        return is_known and self.kv_cache is not None and self.workload.phase == "decode"

    def _attention(self, resource: str) -> Callable[[Layer, Precision], float]:
        """Price of keys or values when a token is decoded; 0 where it is not known."""
        assert self.profile is not None
        price, cache = self.profile.attention(resource), self.kv_cache
        if price is None or cache is None or not self.decodes:
            return _nothing
        return partial(price.of, cache=cache, batch_size=self.workload.batch_size)

    def _linear(self, resource: str, candidates: Sequence[Precision]) -> CostTable:
        """What needs no device; of ``weight_bytes``, all else that is stored is the constant."""
        table = linear_cost(resource, self._layers, candidates, self.stored_bits)
        # Mean bits, activations and operations are of the layers alone.
        constant = self.constant_bytes if resource == WEIGHT_BYTES else 0
        return replace(table, constant=float(constant))

    def _caches(self, resource: str, candidates: Sequence[Precision]) -> CostTable:
        """Bytes of keys and values; or of weights as well, with all else that is stored."""
        if self.kv_cache is None:
            raise InputError(f"{resource} {NO_CACHE}")
        found = cache_table(self.layers, candidates, self.kv_cache)
        if resource == KV_CACHE_BYTES:
            return found
        return weight_and_cache_table(self._linear(WEIGHT_BYTES, candidates), found)

    def _flash(self, candidates: Sequence[Precision]) -> CostTable:
        """Bytes of weights; the device's code in the constant, where its size is known."""
        numbers = self.profile.numbers() if self.profile else {}
        code_bytes = numbers["code_bytes"].value if "code_bytes" in numbers else 0.0
        return flash_table(
            self._layers, candidates, self.num_unquantized, code_bytes, self.stored_bits
        )

    def _file(self, candidates: Sequence[Precision]) -> CostTable:
        """Bytes of the target's files."""
        if isinstance(self.file, str):
            raise InputError(self.file)
        return file_table(self._layers, candidates, self.file)

    def _runnable(self, table: CostTable) -> CostTable:
        """With ``nan`` where the device cannot run a layer."""
        if self.profile is None:
            return table
        can_run = self.profile.can_run
        # At the workload's tokens, as a measured table decides by the shape.
        able = [
            [not layer.has_weights or can_run(layer, candidate) for candidate in table.precisions]
            for layer in self._layers
        ]
        return replace(table, values=np.where(able, table.values, np.nan))

    def amount(self, resource: str, precisions: Mapping[str, Precision]) -> float:
        """What an assignment costs, in the resource's unit; ``nan`` where the device cannot run it.

        Resources that need no device are counted also where the device cannot run it.
        """
        if resource == PEAK_RAM:
            return peak_ram_bytes(self._lifetimes, precisions, self.workload.batch_size)[0]
        # In the order of the layers, which need not be that of the mapping.
        chosen = [precisions[layer.name] for layer in self.layers]
        if resource in (*LINEAR_RESOURCES, *CACHE_RESOURCES, FLASH):
            return self._without_device(resource, chosen)
        # Only precisions in use: for others a profile may lack a number, and refuse.
        candidates = tuple(dict.fromkeys(chosen))
        table = (self._file if resource == FILE_BYTES else partial(self.table, resource))(
            candidates
        )
        columns = [candidates.index(precision) for precision in chosen]
        return table.total(np.array(columns, dtype=np.intp))

    def _without_device(self, resource: str, chosen: Sequence[Precision]) -> float:
        """Of the layers' own precisions alone: channels of a weight are those of its layer."""
        if resource == FLASH:
            amounts = flash_amounts(self._layers, chosen, self.stored_bits)
            return fsum([self._flash(()).constant, *amounts])
        if resource in CACHE_RESOURCES:
            return self._of_caches(resource, chosen)
        amounts = linear_amounts(resource, self._layers, chosen, self.stored_bits)
        return fsum([self._linear(resource, ()).constant, *amounts])

    def _of_caches(self, resource: str, chosen: Sequence[Precision]) -> float:
        cache = self.kv_cache
        if cache is None:
            raise InputError(f"{resource} {NO_CACHE}")
        pairs = zip(self.layers, chosen, strict=True)
        found = fsum(cache_bytes(layer, precision, cache) for layer, precision in pairs)
        is_alone = resource == KV_CACHE_BYTES
        return found if is_alone else found + self._without_device(WEIGHT_BYTES, chosen)


def _nothing(_: Layer, __: Precision) -> float:
    return 0.0


def check_resource(resource: str, has_device: bool) -> None:
    """Refuses a resource that cannot be priced.

    Raises:
        InputError: If the resource needs a device and there is none.
        UnknownNameError: If there is no such resource.
    """
    if resource not in RESOURCES:
        raise UnknownNameError("resource", resource, RESOURCES)
    # A flag, not a profile: a result that was read from a file knows only its device's name.
    if resource in DEVICE_RESOURCES and not has_device:
        raise InputError(f"{resource} needs a device: give one (`mpq devices` lists them)")


def check_sum(resource: str, has_device: bool) -> None:
    """Refuses a resource that is no sum over layers, too.

    Raises:
        InputError: If the resource needs a device and there is none, or is a maximum over steps.
        UnknownNameError: If there is no such resource.
    """
    check_resource(resource, has_device)
    if resource == PEAK_RAM:
        raise InputError(
            f"{PEAK_RAM} is the maximum over the steps of a forward pass, not a sum over "
            "layers: it can be limited, but not minimized nor be the axis of a frontier"
        )
