"""An estimate by several jobs: each a share of the batches, and the answer of one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import FileFormatError, InputError, MismatchError, OutputError
from mpq.sensitivity.output_sketch import _Sketch
from mpq.workflows.shards import estimate_shard, merge
from tests.workflows.networks import Net, batches

LIMIT = {"effective_bits": 4.0}
DIVISIBLE = ("auto", "sketch", "sketch:num_probes=3,channels=0.5", "measured")


def images() -> list[Tensor]:
    """Eight batches, of which six are not held out."""
    return batches(8)


def task(folder: Path | None, **options: Any) -> mpq.Task:
    torch.manual_seed(0)
    given = {"candidates": ["w2a8", "w4a8", "w8a8"], "rounding": "nearest", **options}
    model = given.pop("model", None) or Net().eval()
    return mpq.Task(model, given.pop("data", images), cache=folder, **given)


def parts(folder: Path, count: int, sensitivity: str = "sketch", **options: Any) -> list[Path]:
    """What as many jobs write, the last one first."""
    return [
        estimate_shard(task(folder, **options), f"{i}/{count}", sensitivity=sensitivity)
        for i in range(count, 0, -1)
    ]


def search(folder: Path | None, sensitivity: str = "sketch", **options: Any) -> Any:
    return mpq.search(task(folder, **options), LIMIT, sensitivity=sensitivity)


def assert_same(found: Any, expected: Any) -> None:
    """The answer, and the table up to the order of sums."""
    one, other = found.problem, expected.problem
    np.testing.assert_allclose(one.loss.values, other.loss.values, rtol=1e-9, atol=1e-15)
    if other.interactions is not None:
        grams = [
            np.tensordot(p.interactions.factor, p.interactions.factor, axes=(0, 0))
            / len(p.interactions.factor)
            for p in (one, other)
        ]
        np.testing.assert_allclose(grams[0], grams[1], rtol=1e-5, atol=1e-9)
        assert one.interactions.shrinkage == pytest.approx(other.interactions.shrinkage)
    assert found.assignment.layers == expected.assignment.layers


@pytest.mark.parametrize("sensitivity", DIVISIBLE)
@pytest.mark.parametrize("count", [1, 4])
def test_a_search_goes_on_from_all_parts(
    tmp_path: Path, sensitivity: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table, pairs and answer of one process, and no batch is sketched again."""
    expected = search(None, sensitivity)
    made = parts(tmp_path, count, sensitivity)
    assert [p.name.rpartition(".")[0].rpartition(".")[2] for p in made] == [
        f"{i}of{count}" for i in range(count, 0, -1)
    ]

    def sketched(*_: Any) -> None:
        raise AssertionError("a batch was sketched again")

    monkeypatch.setattr(_Sketch, "passes", sketched)
    found = search(tmp_path, sensitivity)

    assert_same(found, expected)
    assert {path.suffix for path in tmp_path.iterdir()} == {".estimate", ".measurement"}


def test_parts_of_folders_of_their_own_are_merged(tmp_path: Path) -> None:
    """Without the network; the search then finds what came out."""
    expected = search(None)
    made = [parts(tmp_path / str(i), 3)[2 - i] for i in range(3)]

    merged = merge(made, tmp_path / "all")

    assert merged.parent == tmp_path / "all"
    found = search(tmp_path / "all")
    assert_same(found, expected)


def test_a_network_without_gradients_is_measured_by_shares(tmp_path: Path) -> None:
    """As ``auto`` does in one process."""

    class Rounding(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    def made() -> nn.Module:
        torch.manual_seed(0)
        return Rounding().eval()

    expected = search(None, "auto", model=made())
    for number in (1, 2):
        estimate_shard(task(tmp_path, model=made()), f"{number}/2", sensitivity="auto")

    found = search(tmp_path, "auto", model=made())

    assert_same(found, expected)


def test_a_shard_that_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler may start a job twice; after the search there is nothing to do at all."""
    first = parts(tmp_path, 2)
    monkeypatch.setattr(_Sketch, "passes", None)

    assert parts(tmp_path, 2) == first
    monkeypatch.undo()
    search(tmp_path)
    assert {p.suffix for p in parts(tmp_path, 2)} == {".estimate"}


def test_a_search_says_which_part_is_missing(tmp_path: Path) -> None:
    """Rather than to do four jobs' work alone."""
    made = parts(tmp_path, 4)
    made[1].unlink()
    made[3].unlink()

    with pytest.raises(InputError, match=r"parts 1/4 \(--shard 1/4\), 3/4 .* are missing"):
        search(tmp_path)
    with pytest.raises(InputError, match="are missing"):
        merge([made[0], made[2]])


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    """Halves beside quarters, by the batches that both have."""
    halves, quarters = parts(tmp_path / "a", 2), parts(tmp_path / "b", 3)

    with pytest.raises(InputError, match=r"1of2.part and .*2of3.part overlap: batches 1 to 3 and"):
        merge([halves[1], quarters[1], quarters[0]])
    with pytest.raises(InputError, match="overlap"):
        merge([*halves, halves[0]])


def sharper() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    net.head.weight.data *= 1.01
    return net


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "network": ({"model": sharper}, "weights"),
    "data": ({"data": lambda: batches(9)[1:]}, "examples"),
    "options": ({"sensitivity": "sketch:num_probes=3"}, "estimator or options of it"),
    "seed": ({"seed": 1}, "estimator or options of it, seed"),
    "candidates": ({"candidates": ["w2a8", "w8a8"]}, "candidates"),
    "ranges": ({"ranges": mpq.Ranges(activation="minmax")}, "ranges of inputs"),
    "metric": ({"metric": "squared-error"}, "metric"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_parts_of_other_estimates_are_refused_by_what_differs(tmp_path: Path, other: str) -> None:
    """In words, and both files."""
    options, word = OTHERS[other]
    options = {k: x() if k == "model" else x for k, x in options.items()}
    one, two = parts(tmp_path / "a", 2)[1], parts(tmp_path / "b", 2, **options)[0]

    with pytest.raises(MismatchError, match=rf"parts of different estimates \(other .*{word}"):
        merge([one, two])


def test_parts_of_another_version_are_refused(tmp_path: Path) -> None:
    """By the checksum of mpq's code, and by the arithmetic of the machine."""
    one, two = parts(tmp_path, 2)
    loaded = np.load(open_content(two), allow_pickle=False)
    state = {key: loaded[key] for key in loaded.files}
    told = json.loads(str(state["part"]))
    told["key"]["code"] = told["key"]["arithmetic"] = "another"
    rewrite(two, {**state, "part": np.array(json.dumps(told))})

    with pytest.raises(MismatchError, match=r"version of mpq, version of torch, number of threads"):
        merge([one, two])


def open_content(path: Path) -> Any:
    from io import BytesIO

    return BytesIO(path.read_bytes().partition(b"\n")[2])


def rewrite(path: Path, state: dict[str, Any]) -> None:
    from mpq._support.cache import Cache
    from mpq.sensitivity.passes.checkpoint import packed

    Cache(path.parent).must_write(path.name, packed(state))


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    """A damaged one, another kept file, nothing, and no file at all."""
    one, two = parts(tmp_path, 2)
    broken = tmp_path / "broken.part"
    broken.write_bytes(one.read_bytes()[:-7])
    merged = shutil.copy(merge([one, two]), tmp_path / "merged.part")

    with pytest.raises(FileFormatError, match="no part of an estimate, or damaged"):
        merge([broken])
    with pytest.raises(FileFormatError, match="but no part of an estimate"):
        merge([merged])
    with pytest.raises(FileFormatError, match="cannot read the part"):
        merge([tmp_path / "none.part"])
    with pytest.raises(InputError, match="at least one"):
        merge([])


@pytest.mark.parametrize(
    ("shard", "options", "message"),
    [
        ("0/2", {}, "counted from 1"),
        ("3/2", {}, "counted from 1"),
        ("half", {}, "write NUMBER/COUNT"),
        ("1/7", {}, "6 batches cannot be split into 7 shares"),
        ("1/2", {"sensitivity": "fisher"}, "'fisher' cannot be split so; take auto, sketch"),
        ("1/2", {"sensitivity": "measured:tolerance=0.1"}, "leave out tolerance and journal"),
    ],
)
def test_what_cannot_be_split_is_refused(
    tmp_path: Path, shard: str, options: dict[str, Any], message: str
) -> None:
    """In a sentence, before the work."""
    with pytest.raises(InputError, match=message):
        estimate_shard(task(tmp_path), shard, **{"sensitivity": "sketch", **options})


def test_a_shard_needs_a_folder_and_limits_that_can_be_met(tmp_path: Path) -> None:
    """Both are said before the work."""
    with pytest.raises(InputError, match="--cache DIR"):
        estimate_shard(task(None), "1/2")
    with pytest.raises(mpq.InfeasibleError):
        estimate_shard(task(tmp_path), "1/2", {"effective_bits": 0.1})
    assert list(tmp_path.glob("*.part")) == []


def test_a_part_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is left of the work, unlike of what a search merely keeps."""

    def full(*_: object) -> None:
        raise OutputError("cannot write to the folder: no space left on device")

    monkeypatch.setattr("mpq._support.cache.write_files", full)
    with pytest.raises(OutputError, match="no space left"):
        estimate_shard(task(tmp_path), "1/2", sensitivity="sketch")
