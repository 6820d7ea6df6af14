"""Standard output's descriptor, as this very process has it before, within and after a block."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from mpq._support import streams
from mpq._support.streams import answer_stream, answers_only, stdout_discarded, stdout_silenced

BLOCKS = (stdout_silenced, answers_only, stdout_discarded)
Block: TypeAlias = Callable[[], AbstractContextManager[None]]


@contextmanager
def own_files(folder: Path) -> Iterator[None]:
    """Both descriptors, ``sys.stdout`` and ``sys.stderr`` on files of their own.

    No fixture: pytest leads the descriptors elsewhere between setup and test.
    """
    streams_before, kept = (sys.stdout, sys.stderr), [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        opened = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams_before
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def say(words: str) -> None:
    """By Python, which may keep it in its buffer."""
    sys.stdout.write(f"{words}\n")


def printed(words: str) -> None:
    """By Python, and past it."""
    say(f"python {words}")
    sys.stdout.flush()
    os.write(1, f"library {words}\n".encode())


def outputs(folder: Path) -> list[str]:
    """What came to standard output and to standard error."""
    return [(folder / str(number)).read_text(encoding="utf-8") for number in (1, 2)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_last_block_leads_the_descriptor_back(tmp_path: Path, depth: int) -> None:
    """And the first one leads it away, as often as that is done."""
    with own_files(tmp_path):
        for _ in range(2):
            with ExitStack() as blocks:
                for _ in range(depth):
                    blocks.enter_context(stdout_silenced())
                    os.write(1, b"within")
            os.write(1, b"after")

    assert outputs(tmp_path) == ["after" * 2, "within" * 2 * depth]


def test_what_is_in_the_buffer_comes_out_where_it_was_printed(tmp_path: Path) -> None:
    """Before the block, within it, after it."""
    with own_files(tmp_path):
        for words in ("one", "two"):
            say(f"before {words}")  # not flushed
            with stdout_silenced():
                say(f"within {words}")
        say("after")
        sys.stdout.flush()

    assert outputs(tmp_path) == [
        "before one\nbefore two\nafter\n",
        "within one\nwithin two\n",
    ]


def test_only_answers_reach_standard_output(tmp_path: Path) -> None:
    """Whatever else is printed within the block goes to standard error."""
    with own_files(tmp_path):
        with answers_only():
            printed("noise")
            answer_stream().write("answer\n")
            printed("more noise")
        printed("after")
        is_given_back = answer_stream() is sys.stdout

    assert is_given_back
    out, err = outputs(tmp_path)
    assert out == "answer\npython after\nlibrary after\n"
    assert err == "python noise\nlibrary noise\npython more noise\nlibrary more noise\n"


def test_the_answer_is_encoded_as_standard_output_is(tmp_path: Path) -> None:
    """As ``PYTHONIOENCODING`` may say."""
    with own_files(tmp_path):
        sys.stdout = os.fdopen(1, "w", encoding="ascii", errors="backslashreplace", closefd=False)
        with answers_only():
            answer_stream().write("\u00b5\n")

    assert outputs(tmp_path)[0] == "\\xb5\n"


def test_discarded_output_goes_nowhere(tmp_path: Path) -> None:
    """What was printed before the block stays, also from the buffer."""
    with own_files(tmp_path):
        say("before")
        with stdout_discarded():
            say("python within")
            os.write(1, b"library within\n")
        printed("after")

    assert outputs(tmp_path) == ["before\npython after\nlibrary after\n", ""]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_that_fails_leaves_the_descriptor_as_found(tmp_path: Path, block: Block) -> None:
    """And the error is the block's."""
    with own_files(tmp_path):
        with pytest.raises(ZeroDivisionError), block():
            raise ZeroDivisionError
        printed("after")

    assert outputs(tmp_path)[0] == "python after\nlibrary after\n"


@pytest.mark.parametrize("block", BLOCKS)
def test_a_closed_descriptor_stays_closed(tmp_path: Path, block: Block) -> None:
    """A service may close it."""
    with own_files(tmp_path):
        os.close(1)
        with block():
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)

    assert outputs(tmp_path) == ["", ""]


def test_a_closed_standard_error_takes_noise_all_the_same(tmp_path: Path) -> None:
    """It goes nowhere; the answer is where it belongs, and the noise not beside it."""
    with own_files(tmp_path):
        os.close(2)
        with answers_only():
            os.write(1, b"noise")
            answer_stream().write("answer")

    assert outputs(tmp_path) == ["answer", ""]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_stream_that_is_not_on_the_descriptor(tmp_path: Path, is_there: bool) -> None:
    """A notebook's takes the answer and stays open; where there is none, nobody is answered."""
    stream = io.StringIO() if is_there else None
    with own_files(tmp_path):
        sys.stdout = stream
        with answers_only():
            say("noise")
            answer_stream().write("answer")
        after = sys.stdout

    assert after is stream
    assert stream is None or stream.getvalue() == "answer"
    assert outputs(tmp_path) == ["", "noise\n"]


def test_after_the_end_nothing_reaches_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a block that began before ends afterwards."""
    monkeypatch.setattr(streams, "_detour", streams._Detour())
    with own_files(tmp_path):
        say("answer")
        with stdout_silenced():
            streams.end_answers()
        printed("noise")
        after = sys.stdout, sys.stderr

    assert after[0] is after[1]
    assert outputs(tmp_path) == ["answer\n", "python noise\nlibrary noise\n"]


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for number in range(256) if is_open(number))


def is_open(number: int) -> bool:
    """Whether the system knows the descriptor."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("has_stderr", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_leaves_no_descriptor_open(tmp_path: Path, block: Block, has_stderr: bool) -> None:
    """A long-lived process enters thousands; a closed standard error is opened on nothing once."""
    with own_files(tmp_path):
        if not has_stderr:
            os.close(2)
        with block():
            pass
        before = descriptors()
        for _ in range(3):
            with block():
                pass
        after = descriptors()
        os.dup2(1, 2)

    assert after == before


def test_an_answer_that_nobody_reads_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """It is an error, and what is left of the answer goes nowhere."""
    with own_files(tmp_path):
        before = descriptors()
        for _ in range(2):
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
            os.close(writer)
            with pytest.raises(BrokenPipeError), answers_only():
                answer_stream().write("answer")
        after = descriptors()

    assert after == before
