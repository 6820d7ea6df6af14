"""Options of a key-value cache: what it may be stored in, and how much of it there is."""

from dataclasses import dataclass
from typing import Annotated

import typer

from mpq.cli.unset import DEFAULT
from mpq.quantization.kv_cache import DEFAULT_CANDIDATES, KVCache

KVCacheFormats = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        help="What keys and values of earlier tokens may be stored in, with commas: a8d,a4d. "
        "Default, with --kv-tokens: a8d to a2d.",
    ),
]
KVTokens = Annotated[
    int | None, typer.Option("--kv-tokens", help="Length of the context that it is priced for.")
]
KVBatchSize = Annotated[
    int, typer.Option("--kv-batch-size", help="Sequences that the cache is priced for.")
]
KVFirst = Annotated[
    int, typer.Option("--kv-first", help="First tokens that the cache keeps as they came.")
]
KVWindow = Annotated[
    int, typer.Option("--kv-window", help="Last tokens that the cache keeps as they came.")
]
KVBeforeRotation = Annotated[
    bool,
    typer.Option(
        "--kv-before-rotation/--no-kv-before-rotation",
        help="Hold keys as they were before positions were rotated into them.",
    ),
]


@dataclass(frozen=True, eq=False)
class KVCacheOptions:
    """What keys and values of earlier tokens may become, and how many there are."""

    kv_cache: KVCacheFormats = None
    kv_tokens: KVTokens = None
    kv_batch_size: KVBatchSize = KVCache.batch_size
    kv_first: KVFirst = KVCache.first
    kv_window: KVWindow = KVCache.window
    kv_before_rotation: KVBeforeRotation = KVCache.before_rotation

    def cache(self) -> KVCache | None:
        """The cache that the options describe; ``None``: it is not searched.

        Raises:
            InputError: If something of it is given without a number of tokens.
        """
        from mpq.errors import InputError

        given = None if self.kv_cache is None else self.kv_cache.split(",")
        given = list(DEFAULT_CANDIDATES) if given == [DEFAULT] else given
        if given is None and self.kv_tokens is None:
            others = (self.kv_batch_size, self.kv_first, self.kv_window, self.kv_before_rotation)
            if others != (KVCache.batch_size, KVCache.first, KVCache.window, False):
                raise InputError(
                    "--kv-batch-size, --kv-first, --kv-window and --kv-before-rotation go with "
                    "--kv-cache and --kv-tokens"
                )
            return None
        if self.kv_tokens is None:
            raise InputError(
                "--kv-cache says what keys and values may be stored in, --kv-tokens of how many "
                "tokens: give both, such as --kv-cache a8d,a4d --kv-tokens 32768"
            )
        return KVCache(
            self.kv_tokens,
            DEFAULT_CANDIDATES if given is None else given,
            self.kv_batch_size,
            self.kv_first,
            self.kv_window,
            self.kv_before_rotation,
        )
