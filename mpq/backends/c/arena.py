"""Where tensors lie: as tightly as their lifetimes let them, found by a few hundred orders."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from mpq.backends.c.steps import Steps

NUM_ORDERS: Final = 500
"""Random orders in which tensors are placed where the plain ones leave gaps."""


@final
@dataclass(frozen=True)
class Block:
    """Memory at one offset: a tensor, and those that are made in its place.

    Args:
        names: Of the tensors.
        held: Step to the bytes that are held in it.
    """

    names: tuple[str, ...]
    held: Mapping[int, int]


@final
@dataclass(frozen=True)
class Arena:
    """A plan.

    Args:
        offsets: Name of a tensor to its first byte.
        num_bytes: Of the whole arena.
        most_held: Bytes of the tensors in the step that holds most: no arena is smaller.
    """

    offsets: Mapping[str, int]
    num_bytes: int
    most_held: int


def plan(steps: Steps, bits: Mapping[str, int]) -> Arena:
    """Offsets of all tensors but the network's output, which the caller holds.

    Args:
        steps: Of the network.
        bits: Name of a tensor to the bits of a code.
    """
    blocks = blocks_of(steps, bits)
    times = range(len(steps.steps))
    most = max(sum(block.held.get(t, 0) for block in blocks) for t in times)
    largest = sorted(blocks, key=lambda x: (-max(x.held.values()), min(x.held)))
    longest = sorted(blocks, key=lambda x: (-sum(x.held.values()), min(x.held)))
    draws, best = random.Random(0), dict[str, int]()
    size = 0
    for attempt in range(NUM_ORDERS):
        order = [largest, longest, blocks][attempt] if attempt < 3 else list(blocks)
        if attempt >= 3:
            draws.shuffle(order)
        offsets, found = _placed(order)
        if not best or found < size:
            best, size = offsets, found
        if size == most:
            break
    return Arena(best, size, most)


def blocks_of(steps: Steps, bits: Mapping[str, int]) -> list[Block]:
    """What is held in which step; elementwise steps overwrite the first tensor they free.

    A tensor is held from the step that makes it to the one that reads it last, both included, and
    the network's input from the first step on, as in ``mpq.network.liveness``.
    """
    last = {name: t for t, step in enumerate(steps.steps) for name in step.reads}
    held: dict[str, dict[int, int]] = {}
    names: dict[str, tuple[str, ...]] = {}
    home = {steps.reads: steps.reads}
    held[steps.reads] = dict.fromkeys(
        range(last[steps.reads] + 1), _bytes(steps, bits, steps.reads)
    )
    names[steps.reads] = (steps.reads,)
    for t, step in enumerate(steps.steps[:-1]):
        size = _bytes(steps, bits, step.makes)
        span = range(t, last.get(step.makes, t) + 1)
        freed = next((x for x in step.reads if step.is_in_place and last[x] == t), None)
        if freed is None:
            home[step.makes] = step.makes
            held[step.makes], names[step.makes] = dict.fromkeys(span, size), (step.makes,)
            continue
        home[step.makes] = place = home[freed]
        names[place] = (*names[place], step.makes)
        # In this step both lie there: as wide as the wider one.
        held[place] |= {t: max(held[place][t], size)} | dict.fromkeys(span[1:], size)
    return [Block(names[name], held[name]) for name in held]


def overwritten(steps: Steps, t: int) -> str | None:
    """The tensor in whose place a step makes its own, if any."""
    step = steps.steps[t]
    later = {name for other in steps.steps[t + 1 :] for name in other.reads}
    is_last = t == len(steps.steps) - 1
    free = (name for name in step.reads if step.is_in_place and name not in later)
    return None if is_last else next(free, None)


def _bytes(steps: Steps, bits: Mapping[str, int], name: str) -> int:
    return -(-steps.elements[name] * bits[name] // 8)


def _placed(blocks: Sequence[Block]) -> tuple[dict[str, int], int]:
    """Each block at the lowest offset that the ones before it leave free."""
    offsets: dict[str, int] = {}
    done: list[tuple[int, Block]] = []
    size = 0
    for block in blocks:
        at = 0
        while True:
            hit = [other for other in done if _overlap(at, block, *other)]
            if not hit:
                break
            # The nearest offset behind one that is in the way: gaps between them are tried, too.
            at = min(start + _reach(at, block, start, other) for start, other in hit)
        done.append((at, block))
        offsets |= dict.fromkeys(block.names, at)
        size = max(size, at + max(block.held.values()))
    return offsets, size


def _reach(at: int, block: Block, start: int, other: Block) -> int:
    """Bytes of another block that are in the way."""
    common = block.held.keys() & other.held.keys()
    return max(
        other.held[t] for t in common if start < at + block.held[t] and at < start + other.held[t]
    )


def _overlap(at: int, block: Block, start: int, other: Block) -> bool:
    return any(
        start < at + block.held[t] and at < start + other.held[t]
        for t in block.held.keys() & other.held.keys()
    )
