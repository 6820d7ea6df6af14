"""The blocks that a deep network is made of: what is run one after the other."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mpq.errors import InputError
from mpq.network.tracing import kind_of


def blocks_of(module: nn.Module, name: str | None = None) -> Sequence[nn.Module]:
    """The modules of the list that holds most parameters, or of the one that is named.

    Args:
        module: The network.
        name: Path of an ``nn.ModuleList`` or ``nn.Sequential``; ``None``: the ``ModuleList`` with
            the most bytes of parameters.

    Raises:
        InputError: If there is none, or its entries are layers themselves.
    """
    lists = {n: m for n, m in module.named_modules() if isinstance(m, nn.ModuleList)}
    if name is None:
        sizes = {n: _num_bytes(m) for n, m in lists.items() if _is_of_blocks(m)}
        if not sizes:
            raise InputError(
                "streaming runs a network block by block, and this one has no nn.ModuleList of "
                "blocks: name an nn.Sequential of them (--blocks, mpq.Task(blocks=...))"
            )
        # Of lists within lists the outermost, which comes first.
        return list(lists[max(sizes, key=lambda n: sizes[n])])
    found = dict(module.named_modules()).get(name)
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not _is_of_blocks(found):
        known = ", ".join(repr(n) for n, m in lists.items() if _is_of_blocks(m)) or "none"
        raise InputError(
            f"blocks={name!r} names no nn.ModuleList or nn.Sequential whose entries have layers; "
            f"lists of the network: {known}"
        )
    return list(found)


def layers_by_block(module: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Layers that lie in one entry of a list of blocks; the outermost lists count.

    Args:
        module: The network.
        names: Paths of its layers; those outside all lists are in no block.
    """
    kinds = nn.ModuleList | nn.Sequential
    lists = [n for n, m in module.named_modules() if isinstance(m, kinds) and _is_of_blocks(m)]
    blocks: dict[str, list[str]] = {}
    for name in names:
        # A list comes before those within it.
        found = next((n for n in lists if not n or name.startswith(f"{n}.")), None)
        if found is not None:
            entry = name.removeprefix(f"{found}." if found else "").partition(".")[0]
            blocks.setdefault(f"{found}.{entry}", []).append(name)
    return list(blocks.values())


def without_caches(module: nn.Module) -> None:
    """Makes networks of transformers keep no keys and values, which blocks would write into twice.

    Args:
        module: Our own copy, with its own configuration.
    """
    for part in module.modules():
        config: Any = vars(part).get("config")
        if getattr(config, "use_cache", False):
            config.use_cache = False


def _is_of_blocks(module: nn.Module) -> bool:
    """Whether entries are more than layers: what a layer reads is kept by its own hooks."""
    parts = list(module.children())
    return bool(parts) and all(kind_of(p) is None and next(p.children(), None) for p in parts)


def _num_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
