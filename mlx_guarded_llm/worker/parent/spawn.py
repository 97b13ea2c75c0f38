"""Starting the worker's program."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...engine.importing import working_folder_gone
from ...errors import EngineDied
from ..status_page import StatusReader, make_page

PATH_VARIABLE = "MLX_GUARDED_WORKER_PATH"  # the folder of this package, then the parent's paths

_PROGRAM = Path(__file__).parents[1] / "child" / "__main__.py"
_ROOT = Path(__file__).parents[3]
_ELSEWHERE = 'Use Backend(isolation="thread"), which needs no process of its own.'


class CannotStart(EngineDied):
    """There is no way to start a worker here; trying again would not help."""


@dataclass(frozen=True)
class Spawned:
    """A process, and the parent's ends of its connections.

    Attributes:
        socket: blocking.
        status: what it notes about itself.
        stdout, stderr: descriptors, to be read.
    """

    popen: subprocess.Popen[bytes]
    socket: socket.socket
    status: StatusReader
    stdout: int
    stderr: int


def spawn() -> Spawned:
    """Start a worker. It dies with the thread that calls this, on Linux.

    Raises:
        CannotStart: there is no Python to start.
        OSError: the system has no process or descriptor left.
    """
    command = [*python_command(), str(_PROGRAM)]
    variables = os.environ | {PATH_VARIABLE: "\n".join([str(_ROOT), *search_path()])}
    with ExitStack() as theirs, ExitStack() as ours:
        _take_low_descriptors(theirs)
        near, far = socket.socketpair()
        theirs.enter_context(far)
        ours.enter_context(near)
        (out_read, out_write), (err_read, err_write), page = os.pipe(), os.pipe(), make_page()
        for descriptor in (out_write, err_write, page):
            theirs.callback(os.close, descriptor)
        for descriptor in (out_read, err_read):
            ours.callback(os.close, descriptor)
        status = StatusReader(page)
        ours.callback(status.close)
        passed = (far.fileno(), page)
        try:
            popen = subprocess.Popen(
                [*command, *map(str, passed), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=out_write,
                stderr=err_write,
                pass_fds=passed,
                cwd="/" if working_folder_gone() else None,  # what MLX needs asks where it is
                process_group=0,  # Ctrl-C is for the parent, which decides what it means
                env=variables,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise CannotStart(f"no worker can be started: {error}.", hint=_ELSEWHERE) from None
        ours.pop_all()  # kept
    return Spawned(popen, near, status, out_read, err_read)


def search_path() -> tuple[str, ...]:
    """Where this process finds modules, for the worker to look there too.

    It does so last, and after MLX is imported if it can: what lies beside the user's
    script shadows nothing that MLX needs.
    """
    here = Path("/") if working_folder_gone() else Path.cwd()
    return tuple(str(here / entry) for entry in sys.path if isinstance(entry, str))


def _take_low_descriptors(stack: ExitStack) -> None:
    """Without stdin, stdout or stderr their numbers would go to what is made next."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        stack.callback(os.close, descriptor)
    os.close(descriptor)


def python_command() -> Sequence[str]:
    """The interpreter with its options. `-P`: the folder it is started in is no module path."""
    flags = sys.flags
    options = ["-P", "-u", "-X", "faulthandler"]
    options += ["-E"] * bool(flags.ignore_environment) + ["-s"] * bool(flags.no_user_site)
    return [_executable(), *options]


def _executable() -> str:
    """Python, also when this process is a server that has Python inside."""
    if getattr(sys, "frozen", False):
        raise CannotStart("a frozen program has no Python to start a worker with.", hint=_ELSEWHERE)
    named = sys.executable or ""
    if "python" in Path(named).name.lower():
        return named
    folder = Path(sys.prefix, "bin")
    for name in (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3", "python"):
        if found := shutil.which(name, path=str(folder)):
            return found
    raise CannotStart(
        f"sys.executable is {named!r}, and there is no Python in {folder} to start a worker with.",
        hint=_ELSEWHERE,
    )
