"""Files of rows: what is written can be read, whatever happened in between."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from mpq._support.journal import Journal
from mpq.errors import FileFormatError, InputError, OutputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.fingerprint import checksum, measurement_key
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer

KEY = {"weights": "abc", "data": "def"}
ROWS = {"batch 0, layer é": [0.1, 1e-300, None], "b": {"x": [[1]]}, "c": "line\nbreak\u2028\r"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet."""
    return tmp_path / "journal.jsonl"


@pytest.fixture
def written(path: Path) -> Path:
    """A journal with the rows above."""
    journal = Journal(path, KEY)
    for name, row in ROWS.items():
        journal.add(name, row)
    return path


def rows(journal: Journal) -> dict[str, object]:
    """Those of the names above that it has."""
    return {name: journal[name] for name in ROWS if name in journal}


def test_rows_are_read_back(written: Path) -> None:
    """Exactly, by another journal on the same file."""
    found = Journal(written, KEY)

    assert rows(found) == ROWS
    assert len(found) == len(ROWS)
    assert "d" not in found


def test_row_is_in_the_file_when_add_returns(path: Path) -> None:
    """A process that is killed afterwards loses nothing."""
    journal = Journal(path, KEY)

    journal.add("a", 1)

    header, line = path.read_text().splitlines()
    assert json.loads(header) == {"mpq_journal": 2, "key": KEY}
    assert json.loads(line) == {"name": "a", "row": 1, "crc32": zlib.crc32(b'["a", 1]')}


def test_file_cut_at_any_byte_can_be_gone_on_with(written: Path) -> None:
    """Whole lines are kept, the rest is dropped, and what is missing can be added again."""
    whole = written.read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [len(b"".join(lines[: i + 1])) for i in range(len(lines))]

    for cut in range(len(whole) + 1):
        written.write_bytes(whole[:cut])
        journal = Journal(written, KEY)
        expected = dict(list(ROWS.items())[: sum(end <= cut for end in ends[1:])])
        assert rows(journal) == expected
        for name, row in ROWS.items():
            if name not in journal:
                journal.add(name, row)
        assert written.read_bytes() == whole


@pytest.mark.parametrize("filled", [b"\0\0\0\n", b'{"name": "d", \0\0\n', b"\0" * 5000])
def test_a_last_line_of_zeros_is_dropped(written: Path, filled: bytes) -> None:
    """A file system may have filled it up."""
    whole = written.read_bytes()
    written.write_bytes(whole + filled)

    journal = Journal(written, KEY)

    assert rows(journal) == ROWS
    assert written.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"[]\n", b"\n", b"{\n", b"null\n", b"\xff\n", b"1" * 5000 + b"\n"]
)
def test_a_last_line_with_its_end_is_never_dropped(written: Path, line: bytes) -> None:
    """It was not torn: somebody changed it, and the file stays as it is."""
    content = written.read_bytes() + line
    written.write_bytes(content)

    with pytest.raises(FileFormatError, match="damaged in line 5: remove that line to measure it"):
        Journal(written, KEY)

    assert written.read_bytes() == content


def test_no_changed_byte_costs_a_row(written: Path) -> None:
    """Of every byte before the last line's end: all rows are there, or the file is refused."""
    whole = written.read_bytes()

    for at in range(len(whole) - 1):
        for byte in (0, 0x0A, 0x20, 0x7D, 0xFF, whole[at] ^ 1):
            changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
            written.write_bytes(changed)
            try:
                found = rows(Journal(written, KEY))
            except InputError:  # also of a file of another form
                assert written.read_bytes() == changed
            else:
                # The last byte before the end may be one of a file system's.
                is_filled = byte == 0 and at == len(whole) - 2
                assert found == ROWS or is_filled


def test_a_row_after_half_a_line(written: Path) -> None:
    """Another process, or this one, found the disk full; the next row is no part of that line."""
    journal = Journal(written, KEY)
    with written.open("ab") as file:
        file.write(b'{"name": "other", "ro')

    journal.add("d", 4)

    found = Journal(written, KEY)
    assert rows(found) == ROWS
    assert found["d"] == 4


def test_damage_in_the_middle_is_an_error(written: Path) -> None:
    """With the line."""
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([lines[0], b'{"name": \n', *lines[2:]]))

    with pytest.raises(FileFormatError, match="journal.jsonl is damaged in line 2"):
        Journal(written, KEY)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, {"mpq_journal": 2}),
        (1, {"mpq_journal": 2, "key": ["weights"]}),
        (2, {"name": ["a"], "row": 1}),
        (2, {"name": None, "row": 1}),
        (2, {"name": "b", "row": {"x": [[2]]}, "crc32": 1}),
        (3, {"name": "b", "row": "text"}),
        (4, {"name": ["a"], "row": 1, "crc32": None}),
    ],
)
def test_whole_lines_of_another_form_are_damage(
    written: Path, number: int, line: dict[str, object]
) -> None:
    """Also the last one: it was not cut off, so that nothing of ours has written it."""
    lines = written.read_bytes().splitlines(keepends=True)
    lines[number - 1] = json.dumps(line).encode() + b"\n"
    written.write_bytes(b"".join(lines))

    with pytest.raises(FileFormatError, match=f"journal.jsonl is damaged in line {number}"):
        Journal(written, KEY)


def test_other_key_is_refused(written: Path) -> None:
    """With what is different and what to do; the file stays as it is."""
    before = written.read_bytes()

    with pytest.raises(
        InputError,
        match=r"journal.jsonl is of another measurement \(other data, seed\); delete it",
    ):
        Journal(written, {"weights": "abc", "data": "xyz", "seed": "0"})

    assert written.read_bytes() == before


@pytest.mark.parametrize("content", [b"hello", b"hello\n", b"[1]\n", b'{"a": 1}\n', b"\xff\n"])
def test_other_file_is_refused(path: Path, content: bytes) -> None:
    """And not touched."""
    path.write_bytes(content)

    with pytest.raises(FileFormatError, match="is not a journal of mpq; give the path of a new"):
        Journal(path, KEY)

    assert path.read_bytes() == content


@pytest.mark.parametrize("version", [1, 3])
def test_other_schema_is_refused(path: Path, version: int) -> None:
    """An older or a newer one, with both versions."""
    path.write_text(json.dumps({"mpq_journal": version, "key": KEY}) + "\n")

    with pytest.raises(FileFormatError, match=f"version {version}; this mpq reads version 2"):
        Journal(path, KEY)


def test_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    """Before anything is measured."""
    with pytest.raises(OutputError, match=r"cannot write the journal .*: No such file"):
        Journal(tmp_path / "missing" / "journal.jsonl", KEY)


def test_folder_in_place_of_a_file_is_an_output_error(tmp_path: Path) -> None:
    """It can be neither read nor written."""
    with pytest.raises(OutputError, match="cannot read the journal"):
        Journal(tmp_path, KEY)


def measured_key(
    scale: float = 1.0, target: int = 0, precision: str = "w4a8", shift: float = 0.0
) -> dict[str, str]:
    """Of a layer on four examples."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).eval(), torch.randn(4, 3)
    with torch.no_grad():
        model.weight *= scale
    data = Calibration([(x + shift, torch.full((4,), target))])
    network, candidates = Network.of(model, data), (Precision.parse(precision),)
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, candidates))
    return measurement_key(network, data, quantizer, candidates)


def test_key_is_the_same_for_the_same_measurement() -> None:
    """Made twice, from copies."""
    assert measured_key() == measured_key()


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"scale": 2.0}, {"weights"}),
        ({"target": 1}, {"data"}),
        ({"precision": "w4a4"}, {"precisions", "activation_ranges"}),
        ({"shift": 1.0}, {"data", "activation_ranges"}),
    ],
)
def test_key_says_what_is_different(options: dict[str, float], changed: set[str]) -> None:
    """Weights, data, precisions, calibrated ranges."""
    before, after = measured_key(), measured_key(**options)  # type: ignore[arg-type]

    assert {name for name in before if before[name] != after[name]} == changed


def test_checksum_tells_numbers_shapes_and_types_apart() -> None:
    """Also those that have the same bytes."""
    tensors = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        torch.tensor([0.0, 0, 0, 1]),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.tensor(0.0),
        torch.zeros(0),
    ]

    found = {checksum([tensor]) for tensor in tensors}

    assert len(found) == len(tensors)
    assert checksum([torch.zeros(2, 3).T]) == checksum([torch.zeros(3, 2)])


def test_a_changed_number_is_noticed(written: Path) -> None:
    """A row that is whole JSON, with one digit that nobody measured."""
    written.write_bytes(written.read_bytes().replace(b"0.1", b"0.2"))

    with pytest.raises(FileFormatError, match="damaged in line 2"):
        Journal(written, KEY)


def test_a_pipe_is_refused(path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(path)

    with pytest.raises(OutputError, match="it is no regular file"):
        Journal(path, KEY)


def test_a_journal_that_another_process_has_removed(written: Path) -> None:
    """Its measurement is done; this one's rows are all there, under a header."""
    journal = Journal(written, KEY)
    written.unlink()

    journal.add("d", 4)

    found = Journal(written, KEY)
    assert rows(found) == ROWS
    assert found["d"] == 4


MANY = """
import sys
from mpq._support.journal import Journal

print(flush=True)  # ready
sys.stdin.read(1)
journal = Journal(sys.argv[1], {"weights": "abc"})
for number in range(20):
    journal.add(f"{sys.argv[2]} {number}", [number] * 50)
"""


def test_processes_that_begin_one_journal_at_once(path: Path) -> None:
    """One header, and every row of all of them, whole; none waits for one that was killed."""
    for round_ in range(3):
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", MANY, str(path), f"{round_} {number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for number in range(4)
        ]
        for run in runs:
            assert run.stdout is not None
            run.stdout.readline()
        for run in runs:
            assert run.stdin is not None
            run.stdin.write(b"g")
            run.stdin.flush()
        # Killed in the middle: what it had begun is the next one's to cut off.
        runs[0].kill()
        for run in runs:
            run.communicate(timeout=60)

        found = Journal(path, {"weights": "abc"})

        expected = {f"{round_} {n} {row}" for n in (1, 2, 3) for row in range(20)}
        assert not [name for name in expected if name not in found]
        path.unlink()


def test_a_row_is_on_disk_before_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is made to write it, all of it: a power cut a moment later loses nothing."""
    journal = Journal(path, {"what": "numbers"})
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.fstat(file).st_size, "row" in journal))
    )

    journal.add("row", [1.0] * 100)

    assert synced == [(path.stat().st_size, False)]
    assert "row" in journal
