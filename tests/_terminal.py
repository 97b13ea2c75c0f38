"""A program in a terminal: what its user sees, and what is typed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pexpect  # type: ignore[import-untyped]  # it ships no types
import pyte
from rich.cells import cell_len

SCRIPT = Path(sys.executable).with_name("mlx-guarded")
PATIENCE = 25.0  # seconds, of a machine that may be busy


class Emulated(pyte.Screen):
    """A screen that wraps a wide character as terminals do: never across the last column."""

    def draw(self, data: str) -> None:
        """See `pyte.Screen`."""
        for character in data:
            if cell_len(character) == 2 and self.cursor.x == self.columns - 1:
                self.carriage_return()
                self.index()
            super().draw(character)


class Terminal:
    """Runs a program on a pseudo-terminal, and emulates the screen.

    Args:
        command: with its arguments.
        environment: of the program.
        columns: of the screen.
        rows: of the screen.

    Attributes:
        raw: all that the program has written.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        *,
        columns: int = 80,
        rows: int = 24,
    ) -> None:
        program, *arguments = map(str, command)
        self._screen = Emulated(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._child = pexpect.spawn(
            program, arguments, env=dict(environment), dimensions=(rows, columns), timeout=PATIENCE
        )
        self.raw = b""

    @property
    def lines(self) -> list[str]:
        """The rows of the screen that are not empty."""
        return [row for line in self._screen.display if (row := line.rstrip())]

    def until(self, condition: Callable[[list[str]], object]) -> None:
        """Read until the screen's lines are as they should be."""
        while not condition(self.lines):
            try:
                self._read(PATIENCE)
            except (pexpect.EOF, pexpect.TIMEOUT) as error:
                raise AssertionError(f"the screen is {self.lines}") from error

    def until_shown(self, text: str) -> None:
        """Read until this stands in a row."""
        self.until(lambda lines: any(text in line for line in lines))

    def type(self, text: str) -> None:
        """Type a line."""
        self._child.sendline(text)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.sendintr()

    @property
    def pid(self) -> int:
        return int(self._child.pid)

    def end(self) -> int | None:
        """Read to the program's end, and return its exit code."""
        try:
            while True:
                self._read(PATIENCE)
        except pexpect.EOF:
            pass
        self._child.close()
        code: int | None = self._child.exitstatus
        return code

    def kill(self) -> None:
        """End the program if it runs."""
        self._child.close(force=True)

    def _read(self, timeout: float) -> None:
        data = self._child.read_nonblocking(4096, timeout)
        self.raw += data
        self._stream.feed(data)
