"""Loading tokenizers. They touch no MLX array, so it need not be on the MLX thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelInvalid

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..models.spec import ModelFiles

# Without any of these transformers makes up an empty tokenizer and says nothing.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
)

# Of models that were unloaded. Where models take turns in memory, each swap would read a
# tokenizer again, which may take longer than its weights do.
_KEPT = 4

_State = frozenset[tuple[str, int, int]]


class Tokenizers:
    """The tokenizers of an engine, each read once. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a moment only
        self._turns: dict[str, threading.Lock] = {}  # by model: held while it is read
        self._used: dict[str, TokenizerWrapper] = {}
        self._kept: dict[Path, tuple[_State, TokenizerWrapper]] = {}  # the oldest first
        self._read_from: dict[str, tuple[Path, _State]] = {}

    def get(self, model: str, files: ModelFiles) -> TokenizerWrapper:
        """The tokenizer of a model. Whoever needs one that is being read waits for it.

        Raises:
            ModelInvalid: as of `load_tokenizer`.
        """
        tokenizer = self._used.get(model)
        if tokenizer is None:
            with self._lock:
                turn = self._turns.setdefault(model, threading.Lock())
            with turn:
                tokenizer = self._used.get(model) or self._find(model, files)
        return tokenizer

    def release(self, model: str) -> None:
        """The model is out of memory. Its tokenizer serves again if its files stay the same."""
        with self._lock:
            tokenizer = self._used.pop(model, None)
            if tokenizer is None:
                return
            path, state = self._read_from.pop(model)
            self._kept.pop(path, None)
            if state:
                self._kept[path] = state, tokenizer
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]

    def _find(self, model: str, files: ModelFiles) -> TokenizerWrapper:
        state = _state(files.path)
        with self._lock:
            before, tokenizer = self._kept.pop(files.path, (None, None))
        if tokenizer is None or before != state:
            tokenizer = load_tokenizer(files)
        with self._lock:
            self._read_from[model] = files.path, state
            self._used[model] = tokenizer
        return tokenizer


def _state(folder: Path) -> _State:
    """What changes when a file of the folder does, weights left out; empty if not known."""
    try:
        files = [file for file in folder.iterdir() if file.suffix != ".safetensors"]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return frozenset()
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def load_tokenizer(files: ModelFiles) -> TokenizerWrapper:
    """The tokenizer of a model folder, as `mlx_lm.load` makes it.

    Code that comes with a model is never run.

    Args:
        files: the verified folder.

    Raises:
        ModelInvalid: there is no tokenizer, or it cannot be loaded.
    """
    # Late, because this imports mlx.
    from mlx_lm.utils import load_config
    from mlx_lm.utils import load_tokenizer as mlx_load_tokenizer

    if not any(any(files.path.glob(name)) for name in _VOCABULARIES):
        raise ModelInvalid(
            f"{files.path} has no tokenizer.",
            hint="Copy tokenizer.json and tokenizer_config.json into it, or fetch it again.",
        )
    try:
        # load_config lets generation_config.json overrule the end-of-text tokens.
        eos = load_config(files.path).get("eos_token_id")
        tokenizer: TokenizerWrapper = mlx_load_tokenizer(
            files.path,
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=_token_ids(eos),
        )
        if not len(tokenizer):
            raise ValueError("its vocabulary is empty")
    except Exception as error:  # transformers raises what it likes
        raise ModelInvalid(
            f"The tokenizer in {files.path} cannot be loaded ({type(error).__name__}: {error}).",
            hint="Fetch the model again; a tokenizer that needs its own code is not supported.",
        ) from error
    return tokenizer


def _token_ids(eos: object) -> list[int] | None:
    """End-of-text ids of a config; None when it names none, so that defaults apply."""
    if eos is None:
        return None
    ids: list[object] = eos if isinstance(eos, list) else [eos]
    tokens = [token for token in ids if isinstance(token, int) and not isinstance(token, bool)]
    if len(tokens) < len(ids):
        raise ValueError(f"eos_token_id is {eos!r}")
    return tokens
