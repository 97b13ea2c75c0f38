"""Deaths of engines, kept between runs in one JSON file, so that a cause can be found later."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from ..back_end import installed
from ..engine.observer import Work
from ..jsonfile import read_json, write_json
from ..version import __version__
from ..worker.parent.death import Cause, Death

FILE = "crashes.json"  # in the cache folder
_MAX_CRASHES = 50
_MAX_STDERR = 2000  # characters
_LOCK_WAIT = 2.0  # seconds; a crash log is not worth more


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One death as it was written down.

    Attributes:
        time: in UTC.
        death: with only the end of its stderr.
        versions: of the packages that were in use, by name.
    """

    time: datetime
    death: Death
    versions: dict[str, str]


class Crashes:
    """The newest deaths in every process that uses this file.

    If the file is missing, broken or not writable, fewer are known; nothing else follows.

    Args:
        path: the file; its folder is made with the first death.
        write: runs the function that writes the file, soon; by default at once.
    """

    def __init__(
        self, path: Path, write: Callable[[Callable[[], None]], None] = lambda work: work()
    ) -> None:
        self._path = path
        self._write = write

    def add(self, death: Death) -> None:
        """Write a death down, with the present time."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(lambda: self._add(time, death))

    def _add(self, time: str, death: Death) -> None:
        entry = {
            "time": time,
            **dataclasses.asdict(death),
            "stderr": death.stderr[-_MAX_STDERR:],
            "versions": versions(),
        }
        with self._alone():
            stored = read_json(self._path)
            entries = [e for e in stored if _crash(e)] if isinstance(stored, list) else []
            write_json(self._path, [*entries, entry][-_MAX_CRASHES:])

    def read(self) -> list[Crash]:
        """All that are known, oldest first."""
        stored = read_json(self._path)
        found = map(_crash, stored) if isinstance(stored, list) else ()
        return sorted(filter(None, found), key=lambda crash: crash.time)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out, or go on without that: at worst an entry is lost."""
        from filelock import FileLock

        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, NotImplementedError):  # Timeout is an OSError
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_WAIT)
                held.enter_context(lock)
            yield


def versions() -> dict[str, str]:
    """The packages that may be to blame for a death."""
    found = {"mlx-guarded-llm": __version__}
    for name in ("mlx", "mlx-lm"):
        if (version := installed(name)) is not None:
            found[name] = version
    return found


def _crash(entry: Any) -> Crash | None:
    """The crash that `add` wrote; None for anything else."""
    try:
        time = datetime.fromisoformat(entry["time"]).astimezone(UTC)
        if entry["cause"] not in get_args(Cause) or entry["work"] not in get_args(Work):
            return None
        return Crash(
            time=time,
            death=Death(
                cause=entry["cause"],
                text=str(entry["text"]),
                pid=int(entry["pid"]),
                code=None if entry["code"] is None else int(entry["code"]),
                work=entry["work"],
                model=str(entry["model"]),
                stderr=str(entry["stderr"]),
                lived=float(entry["lived"]),
                preparing=tuple(map(str, entry.get("preparing", ()))),
            ),
            versions={str(name): str(value) for name, value in entry["versions"].items()},
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
