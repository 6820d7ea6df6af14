"""One command in one folder, killed and run again, and what is looked at in between."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import mpq
from mpq.errors import FileFormatError
from scripts.soak_commands import Command, comparable, measured, rows, without_clock
from scripts.soak_process import Ended, Moment, Run

SIGNALS: Final = (signal.SIGKILL,) * 7 + (signal.SIGTERM, signal.SIGINT, signal.SIGINT)
UNDER_WAY: Final = re.compile(r"\.mpq-(staging|export)-")
WAIT_S: Final = 2.0
"""Longer sleep than in an uninterrupted run is a wait for something."""
WAIT_FOR_OTHERS_S: Final = 20.0
"""For commands that start a runtime, whose time on a busy machine is theirs to sleep."""


@dataclass
class Reference:
    """What a command does if nobody disturbs it.

    Args:
        folder: Where it has run.
        ended: How.
        old: Where it has run with other limits before.
    """

    folder: Path
    ended: Ended
    old: Path | None

    def wholes(self, has_old: bool) -> list[Path]:
        """Folders of the runs whose files may be there."""
        return [self.folder, self.old] if has_old and self.old else [self.folder]


def prepare(folder: Path, command: Command, searched: Path) -> None:
    """A new folder, with the files of a search that the command reads."""
    folder.mkdir()
    # One for each search that commands go on from.
    searched = searched.with_name(f"{searched.name} {crc32(repr(command.searched).encode())}")
    if command.needs and not searched.exists():
        searched.mkdir()
        ended = Run(searched, list(command.searched), Moment()).end()
        if ended.code:
            sys.exit(f"the search failed undisturbed:\n{ended.said}")
    for name in command.needs:
        shutil.copy(searched / "out" / name, folder / name)


class Round:
    """One command in one folder, killed and run again."""

    def __init__(
        self, command: Command, wanted: Reference, rng: random.Random, folder: Path
    ) -> None:
        self.command, self.wanted, self.rng, self.folder = command, wanted, rng, folder
        self.wrong: list[str] = []
        self.story: list[str] = []
        self.counts: Counter[str] = Counter()
        self.slept_s = 0.0
        self.kept = folder / command.kept
        self.has_old = False

    def play(self) -> None:
        """The whole of it."""
        prepare(self.folder, self.command, self.wanted.folder.parent / "searched")
        old = self.wanted.old
        self.has_old = old is not None and self.rng.random() < 0.3
        if self.has_old and old is not None:
            shutil.copytree(old / "out", self.folder / "out")
            self.story.append("after an older run")
        if self.rng.random() < 0.2:
            self._two_at_once()
        else:
            for _ in range(self.rng.randint(1, 3)):
                self._kill(self._moment())
        self._run_again()

    def _moment(self) -> Moment:
        drawn, usual = self.rng.choice(SIGNALS), self.wanted.ended
        # Both are drawn in any case, so that what follows does not depend on the clock.
        change, share = self.rng.randint(1, max(usual.changes, 1)), self.rng.uniform(0, 1.1)
        if self.rng.random() < 0.5 and usual.changes:
            return Moment(drawn, change=change)
        return Moment(drawn, seconds=share * usual.seconds)

    def _kill(self, moment: Moment) -> None:
        with _Watched(self) as before:
            ended = Run(self.folder, self.command.line(), moment).end()
            self._tell(moment, ended)
        self._check_rows(before)
        self._check_files()
        self._check_folder()

    def _two_at_once(self) -> None:
        """The first or the second is killed, and the other one never notices."""
        moment = self._moment()
        is_first, lag = self.rng.random() < 0.5, self.rng.uniform(0, self.wanted.ended.seconds)
        self.story.append(f"two at once, {lag:.2f} s apart, {'first' if is_first else 'second'}")
        with _Watched(self) as before:
            moments = [moment, Moment()] if is_first else [Moment(), moment]
            first = Run(self.folder, self.command.line(), moments[0])
            time.sleep(lag)
            second = Run(self.folder, self.command.line(), moments[1])
            killed, other = (first, second) if is_first else (second, first)
            self._tell(moment, killed.end())
            ended = other.end()
        self.counts["two at once"] += 1
        if ended.code and not self._is_refused(ended):
            self.wrong.append(f"the other one failed: {ended.said[-300:]}")
        self._check_rows(before)
        self._check_files()

    def _tell(self, moment: Moment, ended: Ended) -> None:
        name = signal.Signals(moment.signal).name
        when = f"before change {moment.change}" if moment.change else f"at {moment.seconds:.2f} s"
        self.story.append(f"{name} {when}: {ended.code}")
        self.counts[name if ended.code else "ended before its kill"] += 1
        # Within a callback of the garbage collection Python says that it ignores an interrupt, and
        # goes on.
        has_traceback = "Traceback" in ended.said and "Exception ignored in" not in ended.said
        # 130: interrupted, said in a sentence.
        is_fine = ended.code in (0, -moment.signal, 130) or self._is_refused(ended)
        if not is_fine or has_traceback:
            self.wrong.append(f"exit code {ended.code} of {name}: {ended.said[-300:]}")

    def _run_again(self) -> None:
        usual = self.wanted.ended
        is_mixed = self.command.is_shared and self.counts["two at once"]
        with _Watched(self) as before:
            ended = Run(self.folder, self.command.line(), Moment()).end()
        waited = ended.slept_s - usual.slept_s
        has_others = bool(self.command.made)
        self.slept_s = self.slept_s if has_others else max(self.slept_s, waited)
        self.counts["run again"] += 1
        is_refused = self._is_refused(ended)
        if ended.code and not is_refused:
            self.wrong.append(f"the next run failed ({ended.code}): {ended.said[-300:]}")
        if waited > (WAIT_FOR_OTHERS_S if has_others else WAIT_S):
            self.wrong.append(f"the next run waited for {waited:.1f} s")
        self._check_rows(before)
        here, there = names(self.folder), names(self.wanted.folder)
        if here != there:
            self.wrong.append(f"left over {here - there}, missing {there - here}")
        # Trials that two processes add by turns are others than those of one.
        if is_mixed or (ended.code and not is_refused):
            return
        if not is_refused and _spoken(ended.answer) != _spoken(usual.answer):
            self.wrong.append("another answer than that of an uninterrupted run")
        for name in sorted(self._results(here & there)):
            if comparable(self.folder / name) != comparable(self.wanted.folder / name):
                self.wrong.append(f"{name} is another than that of an uninterrupted run")

    def _is_refused(self, ended: Ended) -> bool:
        """Whether all was done already, by one that was killed later, or by the other one."""
        made = self.command.made
        is_told = ended.code == 2 and "is there already" in ended.said
        return bool(made) and is_told and (self.folder / made).is_dir()

    def _check_rows(self, before: list[str]) -> None:
        """What was on disk is there, and nothing twice."""
        now = _Watched(self).rows()
        self.counts["rows on disk at a kill or at its rerun"] += len(before)
        if now[: len(before)] != before:
            self.wrong.append(f"{len(before)} rows were on disk, and are not among {len(now)} now")
        twice = [name for name, n in Counter(measured(now)).items() if n > 1]
        # Two processes may measure one thing at once: none waits for the other.
        if twice and not self.counts["two at once"]:
            self.wrong.append(f"measured twice: {twice[:3]}")

    def _check_files(self) -> None:
        """Each is whole: of the older run, or of this one; a folder that is made at once, too."""
        made = self.command.made
        if made and (self.folder / made).exists():
            self.counts["exports that were there after a kill"] += 1
            here, there = names(self.folder / made), names(self.wanted.folder / made)
            if here != there:
                self.wrong.append(f"{made} looks finished: {here - there}, missing {there - here}")
        is_mixed = self.command.is_shared and self.counts["two at once"]
        for name in self._results(names(self.folder)):
            whole = [root / name for root in self.wanted.wholes(self.has_old)]
            known = [comparable(file) for file in whole if file.exists()]
            if is_mixed:
                continue
            try:
                found = comparable(self.folder / name)
            except ValueError:
                found = None
            if found not in known:
                self.wrong.append(f"{name} is neither the old nor the new one")

    def _check_folder(self) -> None:
        """A folder of a search is one run's, or refused."""
        if self.command.args[0] != "search" or not names(self.wanted.folder) <= names(self.folder):
            return
        self.counts["folders loaded after a kill"] += 1
        try:
            found = without_clock(json.loads(mpq.load(self.folder / "out").to_json()))
        except FileFormatError:
            self.counts["folders of two runs, refused"] += 1
            return
        whole = [mpq.load(root / "out") for root in self.wanted.wholes(self.has_old)]
        if found not in [without_clock(json.loads(one.to_json())) for one in whole]:
            self.wrong.append("mpq.load takes the folder for a run that nobody has made")

    def _results(self, found: set[str]) -> set[str]:
        """Without rows and without what a process has under way."""
        return {
            name
            for name in found
            if not name.startswith(self.command.kept or "/")
            and not UNDER_WAY.search(name)
            and (self.wanted.folder / name).is_file()
        }


class _Watched:
    """The rows of a round's command as they were before something."""

    def __init__(self, round_: Round) -> None:
        self._kept, self._link = round_.kept, round_.folder.parent / "rows"
        self._has = bool(round_.command.kept)

    def rows(self) -> list[str]:
        """As they are now; those of a journal that was removed because all is done, too."""
        if not self._has:
            return []
        file = self._link if self._link.exists() and not self._kept.exists() else self._kept
        return rows(file)

    def __enter__(self) -> list[str]:
        before = rows(self._kept) if self._has else []
        # The same file by another name: it outlives its removal by the command.
        self._link.unlink(missing_ok=True)
        if self._has and self._kept.exists() and self._kept.suffix != ".db":
            os.link(self._kept, self._link)
        return before

    def __exit__(self, *_: object) -> None:
        return None


def names(folder: Path) -> set[str]:
    """Of everything in a folder, hidden files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _spoken(answer: str) -> Any:
    """An answer without what a clock has measured in it."""
    try:
        return without_clock(json.loads(answer))
    except ValueError:
        # A table for people: times are in it where the command measures some.
        return len(answer.splitlines())
