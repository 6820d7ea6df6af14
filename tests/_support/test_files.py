"""Writing results: whole files or none, whatever happens in between."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpq._support.files import prepare_folder, prepared_folder, remove_files, staging, write_files
from mpq.errors import InputError, OutputError


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files and folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(folder)"
        for path in folder.rglob("*")
    }


def failing_at(
    name: str, error: BaseException, real: Callable[[Path, bytes], int]
) -> Callable[[Path, bytes], int]:
    """``Path.write_bytes`` that writes half of the named file and then fails."""

    def write_bytes(path: Path, content: bytes) -> int:
        if path.name != name:
            return real(path, content)
        real(path, content[: len(content) // 2])
        raise error

    return write_bytes


def test_all_files_are_written(tmp_path: Path) -> None:
    """Every file is there with its content, and nothing else; folders are made as needed."""
    folder = tmp_path / "runs" / "first"

    paths = write_files(folder, {"a.txt": b"one", "b.bin": b"\x00\x01"})

    assert paths == [folder / "a.txt", folder / "b.bin"]
    assert contents(folder) == {"a.txt": b"one", "b.bin": b"\x00\x01"}


def test_old_files_are_replaced_and_others_stay(tmp_path: Path) -> None:
    """A second run overwrites its own files and leaves the user's alone."""
    (tmp_path / "notes.md").write_bytes(b"mine")
    write_files(tmp_path, {"a.txt": b"old"})

    write_files(tmp_path, {"a.txt": b"new"})

    assert contents(tmp_path) == {"a.txt": b"new", "notes.md": b"mine"}


@pytest.mark.parametrize("name", ["a.txt", "b.txt"])
def test_a_full_disk_leaves_the_old_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first or the last file cannot be written, no file changes and nothing stays behind."""
    write_files(tmp_path, {"a.txt": b"old a", "b.txt": b"old b"})
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", failing_at(name, full, Path.write_bytes))

    with pytest.raises(OutputError, match=r"cannot write to the folder .*No space left on device"):
        write_files(tmp_path, {"a.txt": b"new a", "b.txt": b"new b"})

    assert contents(tmp_path) == {"a.txt": b"old a", "b.txt": b"old b"}


def test_ctrl_c_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt within the second file leaves neither half a file nor a temp folder."""
    write_files(tmp_path, {"a.txt": b"old a"})
    failing = failing_at("b.txt", KeyboardInterrupt(), Path.write_bytes)
    monkeypatch.setattr(Path, "write_bytes", failing)

    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, {"a.txt": b"new a", "b.txt": b"new b"})

    assert contents(tmp_path) == {"a.txt": b"old a"}


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    """A file cannot replace a folder: an error of ours, and the folder is still there."""
    (tmp_path / "a.txt").mkdir()

    with pytest.raises(OutputError, match="a folder is there"):
        write_files(tmp_path, {"a.txt": b"new"})

    assert contents(tmp_path) == {"a.txt": b"(folder)"}


def test_a_folder_in_the_place_of_the_last_file(tmp_path: Path) -> None:
    """None of the files is replaced where one of them cannot be."""
    write_files(tmp_path, {"a.txt": b"old a"})
    (tmp_path / "b.txt").mkdir()

    with pytest.raises(OutputError, match=r"b\.txt: a folder is there"):
        write_files(tmp_path, {"a.txt": b"new a", "b.txt": b"new b"})

    assert contents(tmp_path) == {"a.txt": b"old a", "b.txt": b"(folder)"}


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_is_no_folder(below: str, tmp_path: Path) -> None:
    """A path at or below a regular file cannot be a folder, and the error names it."""
    file = tmp_path / "file"
    file.write_bytes(b"mine")

    with pytest.raises(OutputError, match=r"cannot write to the folder .*/file"):
        prepare_folder(file / below)

    assert contents(tmp_path) == {"file": b"mine"}


def test_preparing_leaves_the_folder_empty(tmp_path: Path) -> None:
    """The trial that the folder can be written to leaves no file."""
    folder = prepare_folder(tmp_path / "runs")

    assert folder.is_dir()
    assert contents(folder) == {}


@pytest.mark.parametrize("there", ["", "runs", "runs/mine", "runs/mine/first"])
def test_an_empty_folder_is_gone_if_it_was_not_there(there: str, tmp_path: Path) -> None:
    """Whatever is refused late leaves all folders as they were, also those that were empty."""
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = contents(tmp_path)

    with pytest.raises(InputError), prepared_folder(tmp_path / "runs" / "mine" / "first"):
        raise InputError("late")

    assert contents(tmp_path) == before


def test_a_folder_with_work_in_it_stays(tmp_path: Path) -> None:
    """A journal, say; of its parents each has something in it."""

    def fails() -> None:
        with prepared_folder(tmp_path / "runs" / "first") as folder:
            (folder / "rows").write_bytes(b"an hour")
            raise InputError("late")

    with pytest.raises(InputError):
        fails()

    assert contents(tmp_path)["runs/first/rows"] == b"an hour"


@pytest.mark.parametrize("name", ["x" * 300, "file/deeper"])
def test_a_folder_that_cannot_be_made_leaves_no_parents(name: str, tmp_path: Path) -> None:
    """An error of ours, and what was made on the way there is gone."""
    (tmp_path / "file").write_bytes(b"mine")
    folder = tmp_path / name if "/" in name else tmp_path / "new" / name

    with pytest.raises(OutputError), prepared_folder(folder):
        pass

    assert contents(tmp_path) == {"file": b"mine"}


def test_files_that_cannot_be_written_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk where there was nothing before."""
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", failing_at("a.txt", full, Path.write_bytes))

    with pytest.raises(OutputError, match="No space left"):
        write_files(tmp_path / "deep" / "out", {"a.txt": b"one"})

    assert contents(tmp_path) == {}


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """It stays what it was, and the error says so."""
    os.mkfifo(tmp_path / "out.json")

    with pytest.raises(OutputError, match="a device or a pipe is there"):
        write_files(tmp_path, {"a.txt": b"one", "out.json": b"{}"})

    assert stat.S_ISFIFO((tmp_path / "out.json").stat().st_mode)
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("leads_to", ["there.json", "gone.json", "/proc/self/fd/1"])
def test_a_link_is_not_replaced(tmp_path: Path, leads_to: str) -> None:
    """What it leads to may be an open stream, which would get nothing."""
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "out.json").symlink_to(leads_to)

    with pytest.raises(OutputError, match="cannot write the file .*out.json: "):
        write_files(tmp_path, {"out.json": b"{}"})

    assert (tmp_path / "out.json").is_symlink()
    assert (tmp_path / "there.json").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from mpq._support.files import write_files
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_files(Path(sys.argv[1]), {"a.txt": b"new"})
"""

unix = pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")


@unix
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Its staged files are nobody's; the next write takes them away."""
    ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = list(tmp_path.glob(".mpq-*"))

    write_files(tmp_path, {"a.txt": b"newer"})

    assert (ran.returncode, len(left)) == (-signal.SIGKILL, 1)
    assert contents(tmp_path) == {"a.txt": b"newer"}


@unix
def test_what_a_living_process_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write in the middle of another one does not take its staged files away."""
    real = os.fsync
    inner: list[Path] = []

    def fsync(file: int) -> None:
        real(file)
        if not inner:
            inner.append(tmp_path / "b.txt")
            write_files(tmp_path, {"b.txt": b"between"})

    monkeypatch.setattr(os, "fsync", fsync)

    write_files(tmp_path, {"a.txt": b"new"})

    assert contents(tmp_path) == {"a.txt": b"new", "b.txt": b"between"}


def test_folders_of_the_users_own_stay(tmp_path: Path) -> None:
    """Only what is called as we call it is ours."""
    (tmp_path / ".mpq-settings").mkdir()
    (tmp_path / ".mpq-staging-of-mine").mkdir()
    (tmp_path / ".mpq-staging-abcdefgh").write_bytes(b"a file")

    write_files(tmp_path, {"a.txt": b"new"})

    kept = {".mpq-settings", ".mpq-staging-of-mine", ".mpq-staging-abcdefgh"}
    assert set(contents(tmp_path)) == {"a.txt", *kept}


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    """The new content is another file of the old name: nobody reads half of each."""
    write_files(tmp_path, {"a.txt": b"old"})
    os.link(tmp_path / "a.txt", tmp_path / "kept.txt")

    with (tmp_path / "a.txt").open("rb") as reader:
        write_files(tmp_path, {"a.txt": b"new"})
        read = reader.read()

    assert (read, contents(tmp_path)) == (b"old", {"a.txt": b"new", "kept.txt": b"old"})


def test_contents_are_on_disk_before_any_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut there is the old file or the whole new one, and none that is empty."""
    events: list[str] = []
    real = Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: events.append(f"{os.fstat(file).st_size} bytes on disk")
    )

    def replace(path: Path, to: Path) -> Path:
        events.append(path.name)
        return real(path, to)

    monkeypatch.setattr(Path, "replace", replace)

    write_files(tmp_path, {"a.txt": b"one", "b.txt": b"three"})

    assert events == ["3 bytes on disk", "5 bytes on disk", "a.txt", "b.txt"]


def test_the_assignment_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is there, so are the files that it belongs to."""
    renamed: list[str] = []
    real = Path.replace

    def replace(path: Path, to: Path) -> Path:
        renamed.append(path.name)
        return real(path, to)

    monkeypatch.setattr(Path, "replace", replace)

    write_files(tmp_path, {"assignment.json": b"1", "problem.json": b"2", "table.csv": b"3"})

    assert renamed == ["problem.json", "table.csv", "assignment.json"]


def test_files_are_removed_where_they_are(tmp_path: Path) -> None:
    """Those that are not there are no error, and a folder is."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder").mkdir()

    remove_files(tmp_path, ["a", "gone", "b"])

    assert sorted(contents(tmp_path)) == ["c", "folder"]
    with pytest.raises(OutputError, match=r"^cannot remove .*folder: "):
        remove_files(tmp_path, ["folder"])


@pytest.mark.skipif(sys.platform == "win32", reason="there nothing is known to be dead")
def test_only_dead_folders_of_one_purpose_are_removed(tmp_path: Path) -> None:
    """No file, no link, no folder of another purpose or name, and not its target."""
    target = tmp_path / "target"
    for path in (target, tmp_path / ".mpq-other-abcdefgh", tmp_path / ".mpq-staging-abc"):
        path.mkdir()
    (target / "kept").write_bytes(b"kept")
    (tmp_path / ".mpq-staging-linklink").symlink_to(target)
    (tmp_path / ".mpq-staging-filefile").write_bytes(b"kept")
    before = contents(tmp_path)
    dead = tmp_path / ".mpq-staging-deaddead"
    (dead / "inside").mkdir(parents=True)

    with staging(tmp_path) as place:
        assert not dead.exists()
        assert place.parent == tmp_path
        assert place.name.startswith(".mpq-staging-")

    assert contents(tmp_path) == before


@unix
def test_what_another_process_removes_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that clean up at once: a file that is gone by the time it is its turn is as good."""
    dead = tmp_path / ".mpq-staging-deaddead"
    dead.mkdir()
    (dead / "inside").write_bytes(b"")
    for name in ("unlink", "rmdir"):
        real = getattr(os, name)

        def twice(path: Any, *rest: Any, real: Callable[..., None] = real, **named: Any) -> None:
            real(path, *rest, **named)
            if "deaddead" in os.fspath(path) or path == "inside":
                real(path, *rest, **named)  # it is not there: FileNotFoundError

        monkeypatch.setattr(os, name, twice)

    write_files(tmp_path, {"a.txt": b"new"})

    assert contents(tmp_path) == {"a.txt": b"new"}


def test_a_file_that_comes_in_parts(tmp_path: Path) -> None:
    """As if it came as a whole."""
    parts: list[bytes | memoryview] = [b"one ", memoryview(b"two")]

    (path,) = write_files(tmp_path, {"a.bin": lambda: parts})

    assert path.read_bytes() == b"one two"
