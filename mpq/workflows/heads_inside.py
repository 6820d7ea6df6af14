"""Parts of layers that are heads of attention: which these are, and which share their bits."""

from mpq._support.arrays import Mask
from mpq.errors import InputError
from mpq.network.heads import Heads, find_heads
from mpq.problem.parts import Parts
from mpq.problem.split import HEADS, Split
from mpq.workflows.setup import Prepared


def heads_of(prepared: Prepared, split: Split | None) -> Heads | None:
    """The heads of the network's attention, if parts of layers are heads.

    Takes a pass over an example.

    Raises:
        InputError: If there are none.
    """
    if split is None or split.kind != HEADS:
        return None
    network = prepared.network
    batch = next(network.batches(prepared.calibration))
    found = find_heads(network, batch.slice(0, 1))
    if not found.parts:
        raise InputError(
            f"split {split} (--split) divides what makes queries, keys and values by heads, and no "
            "attention with more than one was found: it takes scaled_dot_product_attention, or two "
            "products of tensors [..., heads, tokens, numbers] with a softmax between them; take "
            "another split, such as blocks:4"
        )
    return found


def tied_rows(heads: Heads, parts: Parts, open_to: Mask) -> tuple[tuple[str, ...], ...]:
    """Names of rows that share their bits: heads of queries, keys and values that meet.

    Those of layers that may take the same formats; others have none to share.

    Args:
        heads: Of the network.
        parts: The rows.
        open_to: ``[L, B]`` what a layer's parts may take.
    """
    found = list[tuple[str, ...]]()
    for met in heads.together:
        alike: dict[bytes, list[str]] = {}
        for name, part in met:
            owner = parts.owners.get(name, name)
            if owner in parts.divided:
                formats = open_to[parts.layers.index(owner)].tobytes()
                alike.setdefault(formats, []).append(f"{owner}[{part}]")
        found += [tuple(rows) for rows in alike.values() if len(rows) > 1]
    return tuple(found)
