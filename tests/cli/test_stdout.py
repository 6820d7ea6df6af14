"""Standard output holds our answer and nothing else, through a real pipe."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer

from mpq._support.streams import answers_only, stdout_discarded, stdout_silenced
from mpq.cli.__main__ import app

USER = """
import os
import torch

print("NOISE of python")
os.write(1, b"NOISE of a library\\n")


def net():
    torch.manual_seed(0)
    print("NOISE while made")
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()


def data():
    os.write(1, b"NOISE of data\\n")
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(16, 6, generator=generator)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its outputs through pipes."""
    return subprocess.run(
        [sys.executable, "-m", "mpq.cli", *words],
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a user's file that prints in every way."""
    (tmp_path / "user.py").write_text(USER)
    return tmp_path


@pytest.mark.parametrize("verb", ["search", "frontier"])
def test_noise_of_the_users_code_is_not_in_the_answer(folder: Path, verb: str) -> None:
    """What the model's file prints goes to standard error, also past Python."""
    ran = run(
        folder, verb, "--model", "user.py:net", "--data", "user.py:data", "--limit",
        "weight_bytes=0.9x:w8a8", "--precisions", "w4a8,w8a8", "--solver", "ilp",
    )  # fmt: skip

    assert "NOISE" not in ran.stdout
    assert "HiGHS is copyright" not in ran.stdout
    assert "Running HiGHS" not in ran.stderr
    assert "NOISE of a library" in ran.stderr
    assert "weight_bytes" in ran.stdout


def test_solving_prints_json_alone(folder: Path) -> None:
    """``mpq solve ... > out.json`` can be read again."""
    (folder / "table.csv").write_text(
        "layer,precision,loss_nats,weight_bytes\n"
        "a,w4a8,0.5,4\na,w8a8,0.1,8\nb,w4a8,0.3,4\nb,w8a8,0.2,8\n"
    )

    ran = run(folder, "solve", "table.csv", "--limit", "weight_bytes=12B", "--solver", "ilp")

    assert json.loads(ran.stdout)[0]["precisions"] == {"a": "w8a8", "b": "w4a8"}


def test_a_library_that_prints_reaches_no_users_stdout() -> None:
    """In Python too: what C code leaves in its buffer goes the same way."""
    code = (
        "import ctypes, os\n"
        "from mpq._support.streams import stdout_silenced\n"
        "print('before')\n"
        "with stdout_silenced():\n"
        "    os.write(1, b'NOISE')\n"
        "    ctypes.CDLL(None).puts(b'NOISE in a buffer')\n"
        "print('after')\n"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "before\nafter\n"
    assert "NOISE in a buffer" in ran.stderr


def test_a_closed_standard_output_is_left_closed() -> None:
    """A service without standard output solves as well."""
    code = (
        "import os\nos.close(1)\n"
        "from mpq._support.streams import stdout_silenced\n"
        "with stdout_silenced():\n    pass\n"
        "os.write(2, b'done')\n"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "done" in ran.stderr


def test_the_descriptor_is_given_back_after_an_error() -> None:
    """Whatever happens within."""
    before = os.fstat(1)

    with pytest.raises(RuntimeError, match="within"), stdout_silenced():
        raise RuntimeError("within")

    assert os.path.sameopenfile(1, 1)
    assert os.fstat(1) == before


def test_a_thread_that_solves_is_not_locked_out_by_the_command() -> None:
    """A command may wait for a thread of the user's, whose block lies within its own."""
    finished = threading.Event()

    def solve() -> None:
        with stdout_silenced():
            finished.set()

    with answers_only():
        threading.Thread(target=solve, daemon=True).start()
        assert finished.wait(10)


def test_blocks_of_two_threads_overlap() -> None:
    """The descriptor comes back with the last of them, not with the first."""
    code = (
        "import os, threading\n"
        "from mpq._support.streams import stdout_silenced\n"
        "inside, leave = threading.Barrier(2), threading.Event()\n"
        "def wait():\n"
        "    with stdout_silenced():\n"
        "        inside.wait(10)\n"
        "        leave.wait(10)\n"
        "        os.write(1, b'NOISE of the last block')\n"
        "thread = threading.Thread(target=wait)\n"
        "thread.start()\n"
        "with stdout_silenced():\n"
        "    inside.wait(10)\n"
        "leave.set()\n"
        "thread.join()\n"
        "print('after')\n"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "after\n"


def test_noise_at_exit_does_not_follow_the_answer(folder: Path) -> None:
    """What the user's code and its libraries print when Python ends."""
    at_exit = "import atexit\natexit.register(print, 'NOISE')\n"
    at_exit += "atexit.register(os.write, 1, b'NOISE')\n"
    (folder / "user.py").write_text(USER + at_exit)

    ran = run(
        folder, "search", "--model", "user.py:net", "--data", "user.py:data", "--limit",
        "weight_bytes=0.9x:w8a8", "--precisions", "w4a8,w8a8", "--sensitivity", "weight-error",
    )  # fmt: skip

    assert "NOISE" not in ran.stdout


@pytest.mark.skipif(os.name == "nt", reason="closes descriptors by a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_breaks_and_leaks_nothing(closed: str) -> None:
    """A service may close either; a copy of standard output must not take the other's number."""
    code = (
        "import os; from mpq._support.streams import *\n"
        "with answers_only(): os.write(1, b'NOISE') if '2' in os.sys.argv[1] else None\n"
        "answer_stream() and answer_stream().write('answer')"
    )
    shell = f'exec "$0" -c "$1" "{closed}" {closed}'

    ran = subprocess.run(
        ["sh", "-c", shell, sys.executable, code], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ("answer" if closed == "2>&-" else "")


COMMANDS = (("devices",), ("devices", "--json"), ("devices", "--show", "nvidia-t4"))


# What typer prints itself.
HELP = (("--help",), ("--version",), ("devices", "--help"))


def unread(words: tuple[str, ...], stderr: int) -> subprocess.Popen[bytes]:
    """The command, its standard output a pipe that nobody reads."""
    ran = subprocess.Popen(
        [sys.executable, "-m", "mpq.cli", *words], stdout=subprocess.PIPE, stderr=stderr
    )
    assert ran.stdout is not None
    ran.stdout.close()
    return ran


@pytest.mark.parametrize("words", [*COMMANDS, *HELP], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(words: tuple[str, ...]) -> None:
    """As with any command of a shell that SIGPIPE ends; nothing is said, whenever it happens."""
    ran = unread(words, subprocess.PIPE)
    assert ran.stderr is not None
    said = ran.stderr.read()
    ran.stderr.close()

    assert (ran.wait(), said) == (141, b"")


@pytest.mark.parametrize("words", [("nosuch",), ("devices", "--nosuch")], ids=" ".join)
def test_an_error_that_nobody_reads(words: tuple[str, ...]) -> None:
    """``2>&1 | true``: typer's own messages end like ours."""
    assert unread(words, subprocess.STDOUT).wait() == 141


class Unread(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, f"nobody reads {len(text)} characters")


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
def test_the_help_of_every_command_may_go_unread(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe breaks when the help is printed, whichever command it is of."""
    monkeypatch.setattr(sys, "stdout", Unread())

    with pytest.raises(SystemExit) as ended:
        app([command, "--help"])

    assert ended.value.code == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
@pytest.mark.parametrize("words", [*COMMANDS, ("--help",)], ids=" ".join)
def test_a_full_disk_is_one_sentence(words: tuple[str, ...]) -> None:
    """The answer is not there, and the exit code says so."""
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "mpq.cli", *words], stdout=full, stderr=subprocess.PIPE
        )

    assert ran.returncode == 2
    assert ran.stderr.count(b"\n") == 1
    assert b"to standard output" in ran.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are listed on Linux")
def test_no_descriptor_stays_open() -> None:
    """A long process searches thousands of times."""

    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    for block in (answers_only, stdout_silenced, stdout_discarded):
        with block():
            os.write(1, b"")

    assert num_open() == before


EARLY = """
import typer.main
from mpq.cli.__main__ import main

def get_command(_):
    raise KeyboardInterrupt

typer.main.get_command = get_command
main()
"""


def test_an_interrupt_before_the_command_begins() -> None:
    """While typer reads its options: one sentence as later on, and no traceback."""
    ran = subprocess.run(
        [sys.executable, "-c", EARLY, "devices"], capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "error: interrupted\n")
