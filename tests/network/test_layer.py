"""Ties, globs and fingerprints of layers."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from mpq.network.layer import (
    Layer,
    fingerprint,
    merge_ties,
    signature,
    ties_of,
    with_owners,
)

NAMES = list("abcdefgh")
Ties = list[tuple[str, ...]]


def linear(name: str, **links: str) -> Layer:
    """A small linear layer."""
    return Layer(name, "linear", (3, 4), 3, (4,), (3,), 4, 3, 12, **links)  # type: ignore[arg-type]


def connected(ties: Ties) -> set[frozenset[str]]:
    """Connected components by walking from every name until nothing new is met."""
    components = set()
    for start in NAMES:
        reached, size = {start}, 0
        while len(reached) > size:
            size = len(reached)
            reached |= {n for tie in ties if reached & set(tie) for n in tie}
        components.add(frozenset(reached))
    return {component for component in components if len(component) > 1}


@given(
    ties=st.lists(st.lists(st.sampled_from(NAMES), max_size=4).map(tuple), max_size=6),
    order=st.permutations(NAMES),
)
def test_merged_ties_are_the_connected_components(ties: Ties, order: list[str]) -> None:
    """Names that a chain of ties joins share one tie, whatever the order of the ties."""
    merged = merge_ties(ties, order)

    assert {frozenset(tie) for tie in merged} == connected(ties)
    assert sum(map(len, merged)) == len({name for tie in merged for name in tie})


@given(ties=st.lists(st.lists(st.sampled_from(NAMES), max_size=4).map(tuple), max_size=6))
def test_merged_ties_come_in_the_given_order(ties: Ties) -> None:
    """Members and ties are sorted by the order of names, so that results can be compared."""
    merged = merge_ties(ties, NAMES)

    assert [list(tie) for tie in merged] == sorted(sorted(tie) for tie in merged)
    assert merge_ties(merged, NAMES) == merged
    assert merge_ties(reversed(ties), NAMES) == merged


def test_names_that_are_no_layer_join_nothing_by_themselves() -> None:
    """A tie may mention a layer that is not quantized; the others of that tie stay tied."""
    merged = merge_ties([("a", "elsewhere", "b"), ("c", "gone")], ["a", "b", "c"])

    assert merged == (("a", "b"),)


def test_layers_that_read_one_tensor_or_own_one_weight_are_tied() -> None:
    """``input_of`` and ``weight_of`` both tie; chains of them become one tie."""
    layers = [
        linear("q"),
        linear("k", input_of="q"),
        linear("v", input_of="q"),
        linear("embed"),
        linear("out"),
        linear("head", weight_of="embed", input_of="out"),
        linear("alone"),
    ]

    ties = ties_of(layers)

    assert ties == (("q", "k", "v"), ("embed", "out", "head"))


def test_layers_without_links_have_no_ties() -> None:
    """Independent layers choose alone; so does a layer whose partner is not quantized."""
    assert ties_of([linear("a"), linear("b", input_of="skipped")]) == ()
    assert ties_of([]) == ()


def test_signature_and_counts_follow_from_the_shape() -> None:
    """A layer is told apart by its name, kind and weight shape."""
    layer = Layer("conv", "conv2d", (8, 3, 5, 5), 8, (3, 9, 9), (8, 5, 5), 243, 200, 15_000)

    assert layer.num_weights == 8 * 3 * 5 * 5
    assert layer.signature == "conv conv2d 8x3x5x5" == signature("conv", "conv2d", (8, 3, 5, 5))


def test_fingerprint_is_sha256_of_the_lines() -> None:
    """The fingerprint is that of the text with one signature per line."""
    lines = ["a linear 3x4", "b conv2d 8x3x5x5"]

    assert fingerprint(lines) == hashlib.sha256(b"a linear 3x4\nb conv2d 8x3x5x5").hexdigest()


def test_fingerprint_tells_networks_apart() -> None:
    """Another name, shape, order or number of layers gives another fingerprint."""
    networks = [
        [],
        ["a linear 3x4"],
        ["a linear 4x3"],
        ["b linear 3x4"],
        ["a linear 3x4", "b linear 3x4"],
        ["b linear 3x4", "a linear 3x4"],
    ]

    assert len({fingerprint(network) for network in networks}) == len(networks)


def test_the_next_reader_takes_the_place_of_one_that_is_left_out() -> None:
    """Without the first of three tied layers the others are tied still, and one owns the bytes."""
    shape = ("linear", (2, 2), 2, (2,), (2,), 2, 2, 4)
    k = Layer("k", *shape, input_of="q", weight_of="q")
    v = Layer("v", *shape, input_of="q", weight_of="q")

    first, second = with_owners((k, v))

    assert (first.input_of, first.weight_of) == (None, None)
    assert (second.input_of, second.weight_of) == ("k", "k")
    assert ties_of((first, second)) == (("k", "v"),)
