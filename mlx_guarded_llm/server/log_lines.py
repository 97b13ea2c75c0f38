"""The log of a server: one line for each thing that happens, as text or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ..errors import InvalidRequest
from ..logs import NAME, get_logger
from .settings import Settings

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_GUARD = "guard_"  # how the fields of an event begin, see `record.log`
_OURS = ("http_method", "http_path", "http_status", "seconds", "client")

access = get_logger("access")


MOST = 2**20  # bytes of a log file; the one before it is kept as well


def set_up(settings: Settings) -> None:
    """Write this program's log to stderr, as the settings say."""
    if settings.log_level == "off":
        return
    handler = Bounded(sys.stderr, settings.log_file)
    handler.setFormatter(JSONLines() if settings.log_format == "json" else TextLines())
    handler.addFilter(_with_request_id)
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    logger.setLevel(settings.log_level.upper())


def to_file(path: Path) -> None:
    """From now on stdout and stderr of this process are a file. What was there is kept beside it.

    Raises:
        InvalidRequest: it cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.1"))
        new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequest(f"log_file: {path} cannot be written ({error}).") from error
    os.dup2(new, 1)
    os.dup2(new, 2)
    os.close(new)


class Bounded(logging.StreamHandler[TextIO]):
    """Writes to stderr. If that is the log file, a new one is begun when it is full.

    Args:
        stream: stderr.
        path: of the log file, if there is one.
    """

    def __init__(self, stream: TextIO, path: Path | None) -> None:
        super().__init__(stream)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        super().emit(record)
        try:
            if self._path is not None and _is_file(self._path) and os.fstat(2).st_size > MOST:
                to_file(self._path)
        except InvalidRequest:
            self.handleError(record)


def _is_file(path: Path) -> bool:
    """Whether stderr is this file by now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(2))
    except OSError:
        return False


class TextLines(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class JSONLines(logging.Formatter):
    """For programs: an object on each line, with the fields of an event where it tells of one."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name.startswith(_GUARD) and name != "guard_time" and value:
                line[name.removeprefix(_GUARD)] = value
            elif name in _OURS or (name == "http_request_id" and value):
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, default=str, ensure_ascii=False)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.http_request_id = REQUEST_ID.get()
    return True
