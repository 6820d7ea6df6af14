"""What a batch is, and reading batches as often as needed."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mpq.errors import DataError, InputError
from mpq.network.examples import IGNORED_TARGET, Batch, Calibration


def examples(sizes: list[int]) -> list[Tensor]:
    """Batches of these sizes whose single feature is the example's number."""
    numbers = torch.arange(sum(sizes), dtype=torch.float32)[:, None]
    return list(numbers.split(sizes))


def read(data: Calibration) -> list[float]:
    """The examples' numbers, in order."""
    return [float(value) for batch in data for value in batch.args[0].flatten()]


def test_tensor_is_one_input_without_targets() -> None:
    """A bare tensor is the only input."""
    x = torch.randn(4, 3)

    batch = Batch.of(x)

    assert batch.args == (x,)
    assert batch.kwargs == {}
    assert batch.targets is None
    assert batch.size == 4


@pytest.mark.parametrize("kind", [tuple, list])
def test_single_element_is_the_input(kind: type) -> None:
    """What ``TensorDataset`` of one tensor yields has no targets."""
    x = torch.randn(4, 3)

    batch = Batch.of(kind([x]))

    assert len(batch.args) == 1
    assert batch.args[0] is x
    assert batch.targets is None


@pytest.mark.parametrize("kind", [tuple, list])
def test_pair_is_input_and_targets(kind: type) -> None:
    """Tuples and lists of two (a ``DataLoader`` yields lists) are inputs and targets."""
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])

    batch = Batch.of(kind([x, y]))

    assert batch.args[0] is x
    assert batch.targets is y


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 0])])
def test_pair_of_inputs_and_targets(targets: Tensor | None) -> None:
    """Several positional inputs are a tuple of their own, with or without targets."""
    a, b = torch.randn(2, 3), torch.randn(2, 5)

    batch = Batch.of(((a, b), targets))

    assert batch.args[0] is a
    assert batch.args[1] is b
    assert batch.targets is targets


def test_three_elements_are_positional_inputs() -> None:
    """A longer tuple has no targets: they are all inputs."""
    inputs = tuple(torch.randn(2, k) for k in (1, 2, 3))

    batch = Batch.of(inputs)

    assert batch.args == inputs
    assert batch.targets is None


def test_mapping_is_inputs_by_name() -> None:
    """A dict is passed by name; what is not a tensor goes through."""
    ids = torch.zeros(2, 5, dtype=torch.long)

    batch = Batch.of({"input_ids": ids, "use_cache": False})

    assert batch.args == ()
    assert batch.kwargs == {"input_ids": ids, "use_cache": False}
    assert batch.size == 2


def test_pair_of_mapping_and_targets() -> None:
    """A dict may come with targets beside it."""
    targets = torch.tensor([3, 4])

    batch = Batch.of(({"x": torch.ones(2, 3)}, targets))

    assert list(batch.kwargs) == ["x"]
    assert batch.targets is targets


def test_labels_are_targets_and_no_input() -> None:
    """Hugging Face's ``labels`` would make the model compute a loss; here they are targets."""
    labels = torch.tensor([1, 0])

    batch = Batch.of({"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": labels})

    assert list(batch.kwargs) == ["input_ids"]
    assert batch.targets is labels


def test_labels_of_a_causal_language_model_are_shifted() -> None:
    """Labels that repeat the ids belong to the position before; the last one predicts nothing."""
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    labels = torch.tensor([[IGNORED_TARGET, 2, 3], [4, 5, IGNORED_TARGET]])

    batch = Batch.of({"input_ids": ids, "labels": labels})

    expected = [[2, 3, IGNORED_TARGET], [5, IGNORED_TARGET, IGNORED_TARGET]]
    assert batch.targets is not None
    assert batch.targets.tolist() == expected


def test_labels_per_token_that_are_no_ids_are_not_shifted() -> None:
    """Token classification has labels of the ids' shape, and they stay where they are."""
    ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 0]])

    batch = Batch.of({"input_ids": ids, "labels": labels})

    assert batch.targets is labels


def test_batch_is_taken_as_it_is() -> None:
    """A ``Batch`` may be yielded directly."""
    batch = Batch((torch.ones(2, 2),))

    found = Batch.of(batch)

    assert found is batch


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.ones(2, 3), [0, 1]), "targets are a tensor; got list"),
        ((torch.ones(2, 3), "cat"), "targets are a tensor; got str"),
        ({"input_ids": torch.ones(2, 3), "labels": [0, 1]}, "targets .*list"),
        ({"pixels": torch.ones(2, 3), "labels": [0, 1]}, "targets .*list"),
        ((torch.ones(1, 3), torch.tensor(1)), "targets"),
        ((torch.ones(2, 3), torch.zeros(3)), r"targets of shape \(3,\) for 2 examples"),
        (torch.ones(0, 3), "no example"),
        (torch.tensor(1.0), "no example"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinite"),
        ({"x": torch.tensor([[float("inf")]])}, "NaN or infinite"),
        ("cat", r"at least one tensor as input; got \['str'\]"),
        ({}, "at least one tensor as input; got nothing"),
        ({"labels": torch.ones(2)}, "at least one tensor as input; got nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_batch_is_refused(data: Any, message: str) -> None:
    """What cannot be a batch is refused in a sentence, as a ``DataError``."""
    with pytest.raises(DataError, match=message):
        Batch.of(data)


def test_map_changes_every_tensor_and_nothing_else() -> None:
    """Inputs by position and name and the targets are changed; a flag stays."""
    batch = Batch((torch.ones(2),), {"x": torch.ones(2), "flag": True}, torch.ones(2))

    doubled = batch.map(lambda tensor: 2 * tensor)

    assert doubled.args[0].tolist() == [2.0, 2.0]
    assert doubled.kwargs["x"].tolist() == [2.0, 2.0]
    assert doubled.kwargs["flag"] is True
    assert doubled.targets is not None
    assert doubled.targets.tolist() == [2.0, 2.0]


def test_slice_keeps_what_has_no_batch_axis() -> None:
    """A shared tensor, such as a causal mask, is not cut."""
    mask = torch.ones(7, 7)
    batch = Batch((torch.arange(4.0),), {"mask": mask}, torch.arange(4))

    part = batch.slice(1, 3)

    assert part.args[0].tolist() == [1.0, 2.0]
    assert part.kwargs["mask"] is mask
    assert part.targets is not None
    assert part.targets.tolist() == [1, 2]


def test_function_is_called_for_every_pass() -> None:
    """A function that yields is called anew, so that nothing is kept in memory."""
    calls = []

    def batches() -> Iterator[Tensor]:
        calls.append(1)
        yield from examples([2, 3])

    data = Calibration(batches)
    first, second = read(data), read(data)

    assert first == second == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len(calls) == 2


def test_list_is_read_again() -> None:
    """A list of batches is read as often as needed."""
    data = Calibration(examples([2, 1]))

    first, second = read(data), read(data)

    assert first == second == [0.0, 1.0, 2.0]
    assert data.num_examples == 3
    assert data.num_batches == 2


def test_data_loader_is_read_again() -> None:
    """A ``DataLoader`` is an iterable that can be read again."""
    dataset = torch.utils.data.TensorDataset(torch.arange(5.0)[:, None], torch.zeros(5))
    data = Calibration(torch.utils.data.DataLoader(dataset, batch_size=2))

    first, second = read(data), read(data)

    assert first == second == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_one_shot_iterator_is_kept() -> None:
    """A generator can be read only once, so that its batches are kept."""
    data = Calibration(iter(examples([2, 2])))

    first, second = read(data), read(data)

    assert first == second == [0.0, 1.0, 2.0, 3.0]


def test_of_keeps_a_calibration() -> None:
    """Data that is already a ``Calibration`` is the same object."""
    data = Calibration(examples([1]))

    found = Calibration.of(data)

    assert found is data


def test_first_is_the_first_batch_of_the_range() -> None:
    """``first`` respects where the examples start, and needs no whole pass."""
    data = Calibration(examples([2, 3]), start=3)

    first = data.first()

    assert first.args[0].flatten().tolist() == [3.0, 4.0]


@pytest.mark.parametrize("source", ["cat", torch.ones(2, 2), {"x": torch.ones(2, 2)}, 3, None])
def test_source_that_yields_no_batches_is_refused(source: Any) -> None:
    """A single tensor or dict is a batch, not a source of batches."""
    with pytest.raises(DataError, match="a function or a list that yields batches; got"):
        Calibration(source)


@pytest.mark.parametrize("returned", [3, None, torch.ones(4, 3), {"x": torch.ones(4, 3)}, "cat"])
def test_function_that_returns_instead_of_yielding_is_refused(returned: Any) -> None:
    """A function that returns one batch would have its rows taken for batches."""
    data = Calibration(lambda: returned)

    with pytest.raises(DataError, match="yields batches; got"):
        list(data)


@pytest.mark.parametrize("source", [[], lambda: iter(())], ids=["list", "function"])
def test_no_batch_is_refused(source: Any) -> None:
    """Data without an example is an error, at the first use."""
    with pytest.raises(DataError, match="there are no examples"):
        list(Calibration(source))
    with pytest.raises(DataError, match="there are no examples"):
        Calibration(source).first()
    with pytest.raises(DataError, match="there are no examples"):
        _ = Calibration(source).num_examples


def test_number_of_examples_that_changes_is_refused() -> None:
    """A function that shares an iterator gives nothing the second time, and other counts differ."""
    sizes = iter([[2, 2], [2]])
    data = Calibration(lambda: examples(next(sizes)))

    list(data)

    with pytest.raises(DataError, match="4 examples at first and 2 later"):
        list(data)


def test_data_error_is_an_input_error() -> None:
    """Callers may catch ``InputError`` or ``ValueError``."""
    with pytest.raises(InputError):
        Batch.of(3)
    with pytest.raises(ValueError, match="tensor"):
        Batch.of(3)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda s: sum(s) > 1),
    held_out=st.floats(0.01, 0.99),
)
@example(sizes=[1, 1], held_out=0.9)
def test_split_is_disjoint_and_complete(sizes: list[int], held_out: float) -> None:
    """However batches are cut, both parts have examples, and together they are all, in order."""
    data = Calibration(examples(sizes))

    tuning, testing = data.split(held_out)

    first, last = read(tuning), read(testing)
    assert first + last == [float(i) for i in range(sum(sizes))]
    assert len(last) == min(sum(sizes) - 1, max(1, round(sum(sizes) * held_out)))
    assert tuning.num_examples == len(first)
    assert testing.num_examples == len(last)


@given(sizes=st.lists(st.integers(1, 4), min_size=4, max_size=8))
def test_split_of_a_split_stays_inside(sizes: list[int]) -> None:
    """Splitting again divides the part, not the whole."""
    tuning, testing = Calibration(examples(sizes)).split(0.5)
    expected = read(tuning)

    inner, outer = tuning.split(0.5)

    assert read(inner) + read(outer) == expected
    assert not set(read(outer)) & set(read(testing))


def test_split_cuts_targets_with_inputs() -> None:
    """Targets stay with their examples."""
    data = Calibration([(torch.arange(5.0)[:, None], torch.arange(5))])

    _, testing = data.split(0.4)

    (batch,) = testing
    assert batch.targets is not None
    assert batch.targets.tolist() == [3, 4]
    assert batch.args[0].flatten().tolist() == [3.0, 4.0]


def test_one_example_cannot_be_split() -> None:
    """Both parts need an example."""
    data = Calibration(examples([1]))

    with pytest.raises(DataError, match="1 example cannot be split"):
        data.split(0.5)


def test_shuffled_data_is_refused() -> None:
    """Other inputs on a later pass would be compared with the first pass's reference."""
    loader = DataLoader(TensorDataset(torch.randn(64, 3)), batch_size=16, shuffle=True)
    data = Calibration(loader)
    list(data)

    with pytest.raises(DataError, match="no shuffling, no random augmentation"):
        list(data)


def test_tensors_within_tuples_and_dicts_are_cut_with_the_others() -> None:
    """A state beside the input, and a dict of options: every example keeps its own."""
    x, state = torch.randn(4, 3), torch.arange(4.0)[:, None]
    batch = Batch.of(((x, (state, {"shift": [state + 1]})), None))

    part = batch.slice(1, 3)
    cut, options = part.args[1]

    assert part.size == 2
    assert cut.tolist() == [[1.0], [2.0]]
    assert options["shift"][0].tolist() == [[2.0], [3.0]]


def test_tensors_within_tuples_are_checked_and_compared() -> None:
    """A NaN is refused, and data that changes from pass to pass."""
    with pytest.raises(DataError, match="NaN"):
        Batch.of(((torch.randn(2, 3), (torch.tensor([1.0, float("nan")]),)), None))

    data = Calibration(lambda: [((torch.ones(2, 3), (torch.rand(2),)), None)])
    list(data)
    with pytest.raises(DataError, match="other inputs than when it was first read"):
        list(data)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    wanted=st.sets(st.integers(0, 29), min_size=1),
)
def test_picked_examples_are_data_of_their_own(sizes: list[int], wanted: set[int]) -> None:
    """In their order, as often as they are read, and to be cut again."""
    data = Calibration(examples(sizes))
    places = {place for place in wanted if place < sum(sizes)} or {0}

    found = data.picked(places)

    assert read(found) == read(found) == sorted(map(float, places))
    assert read(found.until(2)) == sorted(map(float, places))[:2]


@given(
    steps=st.lists(st.integers(0, 9), min_size=4, max_size=40),
    share=st.sampled_from([0.1, 0.25, 0.5]),
)
def test_splits_are_spread_over_numbers(steps: list[int], share: float) -> None:
    """Among any neighbours along them, so many that one should be, one is held out or nearly so."""
    data = Calibration(examples([3] * (len(steps) // 3) + [len(steps) % 3 or 3]))
    steps = [*steps, *[0] * (data.num_examples - len(steps))]

    first, last = data.spread_over(steps).split(share)

    assert sorted(read(first) + read(last)) == read(data)
    assert last.num_examples == max(1, round(share * len(steps)))
    held = {int(place) for place in read(last)}
    order = sorted(range(len(steps)), key=steps.__getitem__)
    places = [rank for rank, place in enumerate(order) if place in held]
    apart = [b - a for a, b in pairwise(places)]
    assert max(apart, default=0) <= -(-len(steps) // len(places))


def test_parts_of_a_spread_split_are_spread_again() -> None:
    """Of every part it is known where its examples are."""
    data = Calibration(examples([8, 8])).spread_over([*range(16)])

    first, _ = data.split(0.5)
    _, last = first.split(0.25)

    assert read(last) == [3.0, 11.0] or read(last) == [4.0, 12.0]
