"""Short names for models: the built-in ones and those of the user's TOML file.

The file holds one table for each name; relative folders count from the file:

    [my-phi]
    model = "mlx-community/Phi-3-mini-4k-instruct-4bit"   # or a folder, or a built-in name
    revision = "main"
    adapter_path = "~/adapters/legal"
    kv_bits = 8
    kv_group_size = 64
    context_window = 4096
    draft = "prompt"
    hosts = ["10.0.0.1", "10.0.0.2"]
    task = "embed"
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..json_values import plain_scalar, shown
from .hosts import hosts_text
from .spec import PROMPT_LOOKUP, Task

KV_BITS = (2, 4, 8)  # what mlx_lm's QuantizedKVCache packs without a remainder
KV_GROUP_SIZES = (32, 64, 128)
_MAX_WINDOW = 2**31 - 1  # tokens
_MAX_TEXT = 4096  # no path and no branch is longer


@dataclass(frozen=True, kw_only=True)
class Alias:
    """What a short name stands for; the options are those of `ModelSpec`.

    Attributes:
        model: "org/repo", a folder, or the name of a built-in model.
        source: the file that defines it, or None for a built-in one.
    """

    model: str
    revision: str | None = None
    adapter_path: str | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    context_window: int | None = None
    draft: str | None = None
    hosts: str | None = None
    task: Task | None = None
    source: Path | None = None


BUILT_IN: Mapping[str, Alias] = {
    name: Alias(model=model)
    for name, model in {
        "smollm2-135m": "smollm2-135m",
        "smollm2-135m-bf16": "smollm2-135m-bf16",
        "all-minilm-l6-v2": "all-minilm-l6-v2",
        "deepseek-r1-70b": "mlx-community/DeepSeek-R1-Distill-Llama-70B-4bit",
        "gemma3-1b": "mlx-community/gemma-3-1b-it-4bit",
        "gemma3-4b": "mlx-community/gemma-3-4b-it-4bit",
        "gpt-oss-20b": "mlx-community/gpt-oss-20b-MXFP4-Q8",
        "llama-3b": "mlx-community/Llama-3.2-3B-Instruct-4bit",
        "llama-8b": "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit",
        "llama-70b": "mlx-community/Llama-3.3-70B-Instruct-4bit",
        "mistral-7b": "mlx-community/Mistral-7B-Instruct-v0.3-4bit",
        "phi3-mini": "mlx-community/Phi-3-mini-4k-instruct-4bit",
        "qwen3-0.6b": "mlx-community/Qwen3-0.6B-4bit",
        "qwen3-4b": "mlx-community/Qwen3-4B-4bit",
        "qwen3-8b": "mlx-community/Qwen3-8B-4bit",
        "qwen3-30b-a3b": "mlx-community/Qwen3-30B-A3B-4bit",
    }.items()
}


def read_aliases(path: Path, *, required: bool) -> dict[str, Alias]:
    """Read the aliases in a TOML file.

    Args:
        path: the file.
        required: a missing file is an error; otherwise it means no aliases.

    Raises:
        InvalidRequest: the file cannot be read or an entry is wrong; the message
            names the file and the entry.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not required:
            return {}
        raise InvalidRequest(
            f"the aliases file {path} does not exist.",
            hint="Create it, or unset MLX_GUARDED_MODELS_FILE and aliases_file.",
        ) from error
    except (OSError, ValueError) as error:  # bad UTF-8 and bad TOML are ValueErrors
        raise InvalidRequest(
            f"the aliases file {path} cannot be read: {error}.", hint="Correct the file."
        ) from error
    return {name: _alias(name, table, path) for name, table in tables.items()}


def _alias(name: str, table: object, path: Path) -> Alias:
    where = f"[{name}] in {path}"
    if not isinstance(table, dict):
        raise InvalidRequest(
            f"{where} is not a table.",
            hint=f'Write [{name}] on its own line and model = "org/repo" below it.',
        )
    options = dict(table)
    model = options.pop("model", None)
    if not isinstance(model, str) or not model:
        raise InvalidRequest(
            f"{where} has no model.", hint='Give model = "org/repo", a folder or a built-in name.'
        )
    return Alias(model=model, source=path, **check_options(options, base=path.parent, where=where))


def check_options(
    options: Mapping[str, object], *, base: Path | None = None, where: str = "the model"
) -> dict[str, Any]:
    """Check the options of a model and make paths absolute.

    Args:
        options: by name, as the caller gave them.
        base: the folder for relative paths; None for the current one.
        where: begins the message of an error.

    Raises:
        InvalidRequest: an option is unknown or its value is out of range.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None:
            near = difflib.get_close_matches(name, _CHECKS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known options: {', '.join(_CHECKS)}."
            raise InvalidRequest(f"{where}: unknown option {name!r}.", hint=hint)
        plain = hosts_text(value, base) if name == "hosts" else plain_scalar(value, name)
        wanted = check(plain)
        if wanted:
            raise InvalidRequest(f"{where}: {name} is {shown(plain)}; it must be {wanted}.")
        checked[name] = plain
    if checked.get("adapter_path") is not None:
        checked["adapter_path"] = str(absolute(checked["adapter_path"], base))
    draft = checked.get("draft")
    if draft is not None and draft != PROMPT_LOOKUP:
        checked["draft"] = _folder_or_name(str(draft), base)
    if checked.get("kv_group_size", 0) is None:
        del checked["kv_group_size"]
    return checked


def _folder_or_name(name: str, base: Path | None) -> str:
    """The absolute path of a folder, or the name of a model if there is no such folder."""
    try:
        folder = absolute(name, base)
    except InvalidRequest:  # the working folder was removed
        return name
    return str(folder) if folder.is_dir() else name


def absolute(path: str | Path, base: Path | None = None) -> Path:
    """The absolute path, with `~` expanded, relative to `base` or the current folder.

    Raises:
        InvalidRequest: it is relative to the current folder, which was removed.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # the home of a user who does not exist
        expanded = Path(path)
    full = (base or Path()) / expanded  # `base` does not matter to an absolute path
    try:
        return full.absolute()
    except FileNotFoundError:
        raise InvalidRequest(
            f"{path} cannot be found: the working folder has been removed.",
            hint="Give the whole path, or change to another folder first.",
        ) from None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> str:
    text = isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and "\0" not in value
    return "" if value is None or text else f"a non-empty string, {_MAX_TEXT} characters at most"


def _folder(value: object) -> str:
    return _text(str(value) if isinstance(value, Path) else value) and "a folder"


def _kv_bits(value: object) -> str:
    return "" if value is None or (_whole(value) and value in KV_BITS) else "2, 4, 8 or None"


def _kv_group_size(value: object) -> str:
    fine = value is None or (_whole(value) and value in KV_GROUP_SIZES)
    return "" if fine else "32, 64 or 128"


def _context_window(value: object) -> str:
    fine = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_WINDOW
    return "" if value is None or fine else f"an integer, 1 to {_MAX_WINDOW}, or None"


def _draft(value: object) -> str:
    wanted = f"the name of a model, or {PROMPT_LOOKUP!r}"
    return _text(str(value) if isinstance(value, Path) else value) and wanted


def _task(value: object) -> str:
    fine = value is None or (isinstance(value, str) and value in ("generate", "embed"))
    return "" if fine else "'generate', 'embed' or None"


_CHECKS: Mapping[str, Callable[[object], str]] = {
    "revision": _text,
    "adapter_path": _folder,
    "kv_bits": _kv_bits,
    "kv_group_size": _kv_group_size,
    "context_window": _context_window,
    "draft": _draft,
    "hosts": _text,
    "task": _task,
}
