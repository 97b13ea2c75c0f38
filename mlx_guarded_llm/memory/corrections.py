"""The measured sizes of models, kept between runs in one JSON file."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from ..jsonfile import read_json, write_json
from .footprint import Footprint

_MAX_ENTRIES = 256
_KEYS = ("weight_bytes", "peak_bytes")


class Corrections:
    """Measured sizes, by the fingerprint of a model. They replace predictions.

    A file that is missing, broken or not writable only means predictions stay as
    they are. Writes are atomic; of two processes that write at once the later one
    wins. Methods may be called from any thread.

    Args:
        path: the file; its folder is made when something is recorded.
        write: has a function run that writes the file, soon; at once if not given.
    """

    def __init__(
        self, path: Path, write: Callable[[Callable[[], None]], None] = lambda work: work()
    ) -> None:
        self._path = path
        self._write = write
        self._lock = threading.Lock()  # of the entries
        self._saving = threading.Lock()  # of the file
        self._entries = _read(path)

    def record(
        self, fingerprint: str, *, weight_bytes: int | None = None, peak_bytes: int | None = None
    ) -> None:
        """Record a measurement.

        Args:
            fingerprint: of the model (`ModelFiles.fingerprint`).
            weight_bytes: how much the memory in use grew when it was loaded; the
                latest measurement counts.
            peak_bytes: the most a prefill took beyond weights and caches; the
                largest measurement counts.
        """
        with self._lock:
            entry = dict(self._entries.pop(fingerprint, {}))
            before = dict(entry)
            if weight_bytes is not None and weight_bytes > 0:
                entry["weight_bytes"] = weight_bytes
            if peak_bytes is not None and peak_bytes > 0:
                entry["peak_bytes"] = max(peak_bytes, entry.get("peak_bytes", 0))
            self._entries[fingerprint] = entry
        if entry != before:
            self._write(self._save)

    def _save(self) -> None:
        with self._saving:
            stored = _read(self._path)
            with self._lock:
                # Other processes write here too, and their entries are kept. The newest entries
                # are last, and are the last to be dropped.
                for fingerprint, entry in self._entries.items():
                    peak = stored.pop(fingerprint, {}).get("peak_bytes", 0)
                    if peak > entry.get("peak_bytes", 0):
                        entry["peak_bytes"] = peak
                self._entries = dict([*stored.items(), *self._entries.items()][-_MAX_ENTRIES:])
                entries = {name: dict(entry) for name, entry in self._entries.items()}
            write_json(self._path, entries)

    def apply(self, fingerprint: str, footprint: Footprint) -> Footprint:
        """The footprint with measured weights, and at least the measured peak."""
        with self._lock:
            entry = self._entries.get(fingerprint, {})
        return dataclasses.replace(
            footprint,
            weight_bytes=entry.get("weight_bytes", footprint.weight_bytes),
            overhead_bytes=max(footprint.overhead_bytes, entry.get("peak_bytes", 0)),
        )


def _read(path: Path) -> dict[str, dict[str, int]]:
    stored = read_json(path)
    if not isinstance(stored, dict):
        return {}
    entries = {
        fingerprint: {
            key: entry[key]
            for key in _KEYS
            if isinstance(entry.get(key), int)
            and not isinstance(entry[key], bool)
            and entry[key] > 0
        }
        for fingerprint, entry in stored.items()
        if isinstance(entry, dict)
    }
    return dict(list(entries.items())[-_MAX_ENTRIES:])
