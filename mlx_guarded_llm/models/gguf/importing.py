"""`import_gguf`: checks a GGUF file here, converts it in a process of its own.

Only one thread of a process may touch MLX, and that is the engine's. So the conversion runs in a
short-lived child; if that runs out of memory, it is only an error here.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from ...back_end import import_hint
from ...errors import InvalidRequest, PullFailed
from ..disk import require_space, tree_size
from ..processes import run_watched
from ..spec import OnProgress, Progress
from .header import READABLE, GGUFHeader, read_gguf
from .llama import BITS, GROUP_SIZE, check_llama
from .tokenizer import tokenizer_files

IMPORT_TIMEOUT = 1800.0  # seconds; a 40 GB file takes a few minutes on a slow disk
_PACKAGE_PARENT = Path(__file__).resolve().parents[3]


def import_gguf(
    path: str | Path,
    dst: str | Path,
    *,
    dequantize: bool = False,
    progress: OnProgress | None = None,
) -> Path:
    """Make an MLX model folder from a GGUF file (llama architecture).

    The folder appears complete or not at all.

    Args:
        path: the file, with tensors in F32, F16, Q4_0, Q4_1 or Q8_0.
        dst: the folder to make; it must not exist, or must be empty.
        dequantize: write bfloat16 weights, which are larger, and faster in batches.
        progress: called in this thread with stage "import", in bytes written.

    Returns:
        The folder, absolute.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: the file is damaged.
        ModelUnsupported: the architecture, the type of a tensor or the tokenizer is not supported;
            the message names it.
        InvalidRequest: `dst` exists already.
        PullFailed: the conversion failed; `dst` does not exist then.
    """
    source, folder = Path(path).expanduser().absolute(), Path(dst).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidRequest(
            f"{folder} exists already.", hint="Remove it first, or name another folder."
        )
    header = read_gguf(source)
    check_llama(header, str(source))
    tokenizer_files(header, str(source))
    require_space(folder, _written_bytes(header, dequantize=dequantize), source.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise PullFailed(
            f"{folder.parent} cannot be written: {error}.", hint="Choose another folder."
        ) from error
    try:
        _convert(source, work, dequantize=dequantize, progress=progress)
        work.chmod(0o755)
        work.replace(folder)
    except OSError as error:
        raise PullFailed(
            f"{source.name} could not be imported to {folder}: {error}.",
            hint="Check the disk and the folder's permissions.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _convert(source: Path, work: Path, *, dequantize: bool, progress: OnProgress | None) -> None:
    command = [sys.executable, "-P", "-m", "mlx_guarded_llm.models.gguf", str(source), str(work)]
    if dequantize:
        command.append("--dequantize")

    def watch() -> None:
        if progress:
            progress(Progress("import", tree_size(work), None))

    # -P keeps the user's folder off sys.path; PYTHONPATH finds this very package.
    env = {**os.environ, "PYTHONPATH": _python_path()}
    try:
        ended = run_watched(command, timeout=IMPORT_TIMEOUT, env=env, watch=watch)
    except TimeoutError as error:
        raise PullFailed(
            f"importing {source.name} took more than {IMPORT_TIMEOUT:.0f} s.",
            hint="Try again when the machine is idle.",
        ) from error
    if ended.returncode < 0:
        raise PullFailed(
            f"importing {source.name} was killed by {_signal_name(-ended.returncode)}.",
            hint="It was probably out of memory: unload other models and try again.",
        )
    if ended.returncode:
        no_mlx = ended.last_line.startswith(("ImportError:", "ModuleNotFoundError:"))
        report = "If the disk has room, report this with the name of the file."
        raise PullFailed(
            f"importing {source.name} failed: {ended.last_line}",
            hint=import_hint() if no_mlx else report,
        )
    watch()


def _python_path() -> str:
    others = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_PACKAGE_PARENT), *([others] if others else [])])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _written_bytes(header: GGUFHeader, *, dequantize: bool) -> int:
    """The bytes that the folder will take: the weights, and some for the tokenizer."""
    weights = 0
    for info in header.tensors.values():
        elements = math.prod(info.shape)
        if dequantize:
            weights += elements * 2
        elif info.type in BITS:
            # Each group also has a scale and a bias of two bytes.
            weights += elements * BITS[info.type] // 8 + elements // GROUP_SIZE * 4
        else:
            weights += elements * READABLE[info.type][1]
    return weights + (16 << 20)
