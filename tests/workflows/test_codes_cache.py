"""Codes that are kept on disk: the same numbers, found once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq._support.cache import Cache
from mpq.cli.__main__ import app
from mpq.errors import OutputError
from mpq.quantization.numerics import Numerics
from mpq.quantization.stored import StoredWeight
from mpq.workflows import shown_examples
from mpq.workflows.codes_cache import CodesCache
from mpq.workflows.codes_keys import ToRound, ToRoundTogether
from mpq.workflows.rounded_weights import RoundedWeights
from mpq.workflows.setup import Prepared
from tests.workflows.networks import Net, batches

ROOT = Path(__file__).resolve().parents[2]
DATA_ROUNDINGS = ("auto", "gptq", "coordinate-descent", "adaround:iterations=20")
LAYERS = 4
"""Of ``Net``."""


def images() -> list[Tensor]:
    return batches(4)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def rounded(model: nn.Module, folder: Path | None, **options: Any) -> RoundedWeights:
    given = {"candidates": ["w2", "w4g8", "w8"], "rounding": "gptq", **options}
    data = given.pop("data", images)
    return Prepared.of(mpq.Task(model, data, cache=folder, **given)).rounded


def same(one: RoundedWeights, other: RoundedWeights) -> bool:
    """To the last bit."""
    if (one.to_nearest, one.unhelped, one.unguided) != (
        other.to_nearest,
        other.unhelped,
        other.unguided,
    ):
        return False
    return one.stored.keys() == other.stored.keys() and all(
        array.dtype == other.stored[cell].parts()[part].dtype
        and np.array_equal(array, other.stored[cell].parts()[part])
        for cell, weight in one.stored.items()
        for part, array in weight.parts().items()
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[ToRound]:
    """Weights that are really rounded."""
    found: list[ToRound] = []
    codes = ToRoundTogether.codes

    def counting(asked: ToRoundTogether) -> list[list[StoredWeight]]:
        found.extend(asked.weights)
        return codes(asked)

    monkeypatch.setattr(ToRoundTogether, "codes", counting)
    return found


@pytest.mark.parametrize("rounding", DATA_ROUNDINGS)
def test_numbers_are_the_same_with_and_without(
    net: nn.Module, tmp_path: Path, counted: list[ToRound], rounding: str
) -> None:
    """At first and from what was kept, the trial of ``auto`` as well; then nothing is rounded."""
    expected = rounded(net, None, rounding=rounding)
    num_rounded = len(counted)

    first = rounded(net, tmp_path, rounding=rounding)
    assert len(counted) == 2 * num_rounded
    again = rounded(net, tmp_path, rounding=rounding)

    assert len(counted) == 2 * num_rounded
    assert num_rounded == (2 * LAYERS if rounding == "auto" else LAYERS)
    assert same(first, expected)
    assert same(again, expected)


def test_a_second_run_makes_no_pass(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even second moments are collected."""
    expected = rounded(net, tmp_path)
    monkeypatch.setattr(shown_examples, "PartialMoments", None)

    assert same(rounded(net, tmp_path), expected)


def test_a_whole_search_is_the_same(net: nn.Module, tmp_path: Path) -> None:
    """Rounded again in order as well, where the passes have to be made all the same."""
    asked = mpq.Task(
        net, images, candidates=["w2", "w4", "w8"], rounding="gptq", sequential_rounding=True
    )
    found = [
        mpq.search(each, {"effective_bits": 4}, sensitivity="sketch")
        for each in (asked, *2 * (replace(asked, cache=tmp_path / "new" / "folder"),))
    ]

    assert found[0].assignment == found[1].assignment == found[2].assignment
    assert found[0].provenance == found[1].provenance == found[2].provenance


def sharper(model: Any) -> None:
    model.head.weight.data *= 1.01


def other_bias(model: Any) -> None:
    model.hidden.bias.data += 0.1


def other_function(model: Any) -> None:
    forward = model.forward
    model.forward = lambda x: forward(x.tanh())


OTHERS: dict[str, tuple[Mapping[str, Any], Callable[[Any], None]]] = {
    "rounding": ({"rounding": "gptq:damping=0.02"}, lambda _: None),
    "seed": ({"seed": 1}, lambda _: None),
    "data": ({"data": lambda: batches(5)[1:]}, lambda _: None),
    "batches": ({"data": lambda: [x for b in images() for x in b.split(8)]}, lambda _: None),
    "candidates": ({"candidates": ["w2", "w8"]}, lambda _: None),
    "ranges": ({"ranges": mpq.Ranges(weight="minmax")}, lambda _: None),
    "weights": ({}, sharper),
    "bias": ({}, other_bias),
    "function": ({}, other_function),
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_changes_codes_finds_none_of_the_others(
    net: nn.Module, tmp_path: Path, other: str
) -> None:
    """Each beside the codes of another question: what comes is what comes without."""
    rounded(net, tmp_path)
    options, change = OTHERS[other]
    change(net)

    found = rounded(net, tmp_path, **options)

    assert same(found, rounded(net, None, **options))


def test_every_part_of_a_weight_to_round_is_in_its_key(
    net: nn.Module, counted: list[ToRound]
) -> None:
    """What is not reached through a search's options as well."""
    rounded(net, None)
    asked = counted[0]
    changes: list[dict[str, Any]] = [
        {"rows": asked.rows + 1},
        {"target": asked.target + 1},
        {"moment": asked.moment * 2},
        {"formats": asked.formats[:-1]},
        {"grids": asked.grids[::-1]},
        {"numerics": Numerics(scale="fp16")},
        {"rounding": mpq.ROUNDINGS.build("nearest")},
    ]

    keys = {replace(asked, **change).key for change in changes}

    assert len(keys) == len(changes)
    assert asked.key not in keys
    assert replace(asked, rows=asked.rows.clone()).key == asked.key


def test_layers_that_stay_the_same_are_not_rounded_again(
    net: Any, tmp_path: Path, counted: list[ToRound]
) -> None:
    """By what they are: a plain moment of the first layer does not know of the last one."""

    class Cut(nn.Module):
        """The loss says nothing of what is before the cut."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.first(x).detach())
            return found

    model, data = Cut().eval(), [torch.randn(16, 8) for _ in range(4)]
    rounded(model, tmp_path, data=data)
    counted.clear()
    model.last.weight.data *= 2

    rounded(model, tmp_path, data=data)

    assert [asked.rows.shape for asked in counted] == [(4, 6)]


KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from mpq.workflows.codes_keys import ToRoundTogether
from tests.workflows.networks import Net
from tests.workflows.test_codes_cache import rounded

torch.set_num_threads(int(sys.argv[3]))
codes, done = ToRoundTogether.codes, []

def until(asked):
    if len(done) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(asked)
    return codes(asked)

ToRoundTogether.codes = until
torch.manual_seed(0)
rounded(Net().eval(), Path(sys.argv[1]))
"""


def process(folder: Path, most: int) -> "subprocess.Popen[bytes]":
    """A process that rounds ``Net``, and is killed where it would round a weight more."""
    arguments = [str(folder), str(most), str(torch.get_num_threads())]
    return subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=ROOT)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_a_kill_what_is_missing_is_rounded(
    net: nn.Module, tmp_path: Path, counted: list[ToRound]
) -> None:
    """A real process, killed at its third weight."""
    assert process(tmp_path, 2).wait() == -signal.SIGKILL

    found = rounded(net, tmp_path)

    assert len(counted) == LAYERS - 2
    assert same(found, rounded(net, None))


def test_several_processes_use_one_folder(
    net: nn.Module, tmp_path: Path, counted: list[ToRound]
) -> None:
    """All at once: each is done, and what they leave is whole."""
    running = [process(tmp_path, LAYERS) for _ in range(3)]

    assert [each.wait() for each in running] == [0, 0, 0]

    found = rounded(net, tmp_path)
    assert counted == []
    assert same(found, rounded(net, None))
    assert len(list(tmp_path.iterdir())) == LAYERS + 1


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-7],
    "empty": lambda _: b"",
    "a bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "header": lambda content: content.replace(b"sha256", b"sha512", 1),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("kind", ["codes", "network"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_made_anew(
    net: nn.Module, tmp_path: Path, counted: list[ToRound], damage: str, kind: str
) -> None:
    """With a word about it; the next run finds them whole."""
    expected = rounded(net, tmp_path)
    counted.clear()
    damaged = next(iter(sorted(tmp_path.glob(f"*.{kind}"))))
    before = damaged.read_bytes()
    damaged.write_bytes(DAMAGES[damage](before))

    with pytest.warns(UserWarning, match=f"{damaged.name} is damaged: what was in it is made anew"):
        found = rounded(net, tmp_path)

    assert same(found, expected)
    assert len(counted) == (1 if kind == "codes" else 0)
    assert damaged.read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "below a file", "no permission"])
def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path, kind: str) -> None:
    """Before the network is run."""
    folder = tmp_path / "codes"
    if kind == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        folder.mkdir(mode=0o500)
    else:
        folder.write_text("")

    class Unrun(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError(x)

    place = folder / "more" if kind == "below a file" else folder
    with pytest.raises(OutputError, match="cannot write to the folder"):
        Prepared.of(mpq.Task(Unrun(3, 2).eval(), [torch.randn(4, 3)], cache=place))


def test_a_file_that_cannot_be_read_is_said(net: nn.Module, tmp_path: Path) -> None:
    """Not taken for one that is not there, which would be written again."""
    rounded(net, tmp_path)
    (kept,) = tmp_path.glob("*.network")
    kept.unlink()
    kept.mkdir()

    with pytest.raises(OutputError, match="cannot read the kept file .*--cache"):
        rounded(net, tmp_path)


def test_a_cache_gives_back_what_it_keeps(tmp_path: Path) -> None:
    """Records as JSON; under another name there is nothing."""
    CodesCache(Cache(tmp_path)).keep_record("a", {"b": [1, "c"]})

    assert CodesCache(Cache(tmp_path)).record("a") == {"b": [1, "c"]}
    assert CodesCache(Cache(tmp_path)).record("b") is None
    assert CodesCache(Cache(tmp_path)).weights("a") is None


def test_files_that_have_changed_places_count_as_damaged(tmp_path: Path) -> None:
    """What somebody renamed is made anew, not taken for what its name says."""
    cache = Cache(tmp_path)
    for name in ("a", "b"):
        CodesCache(cache).keep_record(name, {"is": name})
    (tmp_path / "b.network").write_bytes((tmp_path / "a.network").read_bytes())

    assert CodesCache(cache).record("a") == {"is": "a"}
    with pytest.warns(UserWarning, match="b.network is damaged: what was in it is made anew"):
        assert CodesCache(cache).record("b") is None


def test_the_command_line_takes_a_folder(tmp_path: Path) -> None:
    """Twice the same answer, the second time from what was kept."""
    arguments = [
        "search", "--limit", "effective_bits=3.5", "--precisions", "w3,w4", "--points", "2",
        "--sensitivity", "weight-error", "--weight-range", "minmax", "--rounding", "gptq",
        "--cache", str(tmp_path / "codes"),
    ]  # fmt: skip

    for run in ("first", "again"):
        outcome = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / run)])
        assert outcome.exit_code == 0, outcome.output

    first, again = (
        mpq.Assignment.load(tmp_path / run / "assignment.json") for run in ("first", "again")
    )
    assert first == again
    assert list((tmp_path / "codes").glob("*.codes"))
