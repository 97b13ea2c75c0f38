"""A virtual environment for each peer, made on first use and kept in the user's cache.

Peers ask for versions of MLX, mlx-lm and transformers that cannot be had together, so each
gets an environment of its own. Where packages come from is the business of uv's settings
on this machine (and of `PIP_FIND_LINKS`, which uv does not read by itself).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs
from filelock import FileLock

from benchmarks.side import CannotRun

# What an index got later is not looked at, so the same versions are chosen each time.
NEWEST = "2026-11-20"
BUILD_SECONDS = 1800.0
# Written last: a folder without it is half made.
MARKER = "made-of.json"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What is to be installed.

    Attributes:
        name: of its folder.
        requirements: as pip's; MLX's back end for this machine is added.
        excludes: packages left out although something asks for them.
    """

    name: str
    requirements: tuple[str, ...]
    excludes: tuple[str, ...] = ()

    def python(self) -> Path:
        """Its interpreter; makes the environment first if it is not whole.

        Raises:
            CannotRun: it cannot be made, with the last lines of what uv said.
        """
        folder = environments() / self.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        recipe = json.dumps(
            {
                **asdict(self),
                "newest": NEWEST,
                "back_end": back_end(),
                "python": platform.python_version(),
            },
            indent=1,
        )
        marker = folder / MARKER
        with FileLock(folder.with_suffix(".lock"), timeout=BUILD_SECONDS):
            if not marker.exists() or marker.read_text() != recipe:
                shutil.rmtree(folder, ignore_errors=True)
                self._make(folder)
                marker.write_text(recipe)
        return folder / "bin" / "python"

    def script(self, name: str) -> Path:
        """A command that one of its packages brings."""
        return self.python().with_name(name)

    def _make(self, folder: Path) -> None:
        print(f"making the environment of {self.name}: minutes on first use", file=sys.stderr)
        python = folder / "bin" / "python"
        with _file(self.excludes) as excludes:
            _uv("venv", "--quiet", "--python", sys.executable, str(folder))
            install = ["pip", "install", "--quiet", "--python", str(python)]
            install += ["--exclude-newer", NEWEST]
            _uv(*install, "--excludes", str(excludes), *self.requirements, back_end())


def environments() -> Path:
    """The folder of all environments."""
    return Path(platformdirs.user_cache_dir("mlx-guarded-llm")) / "benchmarks" / "peers"


def back_end() -> str:
    """The requirement for MLX with the back end that this environment has too."""
    if sys.platform == "linux":
        for extra in ("cuda13", "cuda12", "cpu"):
            try:
                version(f"mlx-{extra}" if extra == "cpu" else f"mlx-cuda-{extra[-2:]}")
            except PackageNotFoundError:
                continue
            return f"mlx[{extra}]"
    return "mlx"


@contextmanager
def _file(lines: tuple[str, ...]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "packages.txt"
        file.write_text("\n".join(lines))
        yield file


def _uv(*arguments: str) -> None:
    settings = dict(os.environ)
    if "PIP_FIND_LINKS" in settings:  # a local wheel of torch without CUDA, perhaps
        settings.setdefault("UV_FIND_LINKS", ",".join(settings["PIP_FIND_LINKS"].split()))
    uv = Path(sys.executable).with_name("uv")
    try:
        done = subprocess.run(
            [uv, *arguments],
            env=settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(f"uv {arguments[0]}: {error}") from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise CannotRun(f"uv {arguments[0]} ended with {done.returncode}: {said}")
