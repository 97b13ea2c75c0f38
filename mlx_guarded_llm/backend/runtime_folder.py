"""The folder of a user in which his programs find each other, and nobody else's do."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import platformdirs

from ..models.aliases import absolute
from ..models.catalog import APP

VARIABLE = "MLX_GUARDED_RUNTIME_DIR"


def folder() -> Path:
    """Where it is; it may not be there.

    Raises:
        OSError: the system's folder for that is another user's.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return absolute(named)
    with warnings.catch_warnings():  # without a session of its own, a user has another folder
        warnings.simplefilter("ignore")
        return platformdirs.user_runtime_path(APP)


def make() -> Path:
    """Make it, if it is not there.

    Raises:
        OSError: it cannot be made, or is not this user's alone.
    """
    place = folder()
    for part in (*reversed(place.parents), place):  # `parents=True` leaves theirs to the umask
        part.mkdir(mode=0o700, exist_ok=True)
    check_private(place)
    return place


def check_private(place: Path) -> None:
    """That nobody else can put something of his own there.

    Raises:
        OSError: somebody else could.
    """
    mine = place.lstat()
    if not stat.S_ISDIR(mine.st_mode) or mine.st_uid != os.geteuid() or mine.st_mode & 0o077:
        raise PermissionError(f"{place} is not a folder that only this user may enter")
    above = place.parent.stat()
    shared = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if above.st_uid not in (0, os.geteuid()) or shared:
        raise PermissionError(f"others may change {place.parent}")
