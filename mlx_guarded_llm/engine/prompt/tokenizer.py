"""Loading tokenizers. They touch no MLX array, so any thread may load them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelInvalid
from ...models.added_tokens import numbered_tokens
from ...models.chat import Chat
from ..lazy_import import lazily_imported
from ..output.detokenizer import make_detokenizer
from ..residency.staging import staged_tokenizer, tokenizer_keys

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...models.spec import ModelFiles

# Without any of these transformers silently creates an empty tokenizer.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
)

# How many tokenizers of unloaded models are kept. When models take turns in memory, each swap
# would otherwise read a tokenizer again, which may take longer than reading the weights.
_KEPT = 4

_State = tuple[Chat, frozenset[tuple[str, int, int]]]


class Tokenizers:
    """The tokenizers of an engine, each read once. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a moment only
        self._reading: dict[str, threading.Lock] = {}  # by model: held while its tokenizer is read
        self._used: dict[str, TokenizerWrapper] = {}
        self._kept: dict[Path, tuple[_State, TokenizerWrapper]] = {}  # the oldest first
        self._read_from: dict[str, tuple[Path, _State | None]] = {}

    def get(self, model: str, files: ModelFiles) -> TokenizerWrapper:
        """The tokenizer of a model. If another thread is reading it, this one waits.

        Raises:
            ModelInvalid: as `load_tokenizer` does.
        """
        tokenizer = self._used.get(model)
        if tokenizer is None:
            with self._lock:
                reading = self._reading.setdefault(model, threading.Lock())
            with reading:
                tokenizer = self._used.get(model) or self._find(model, files)
        return tokenizer

    def release(self, model: str) -> None:
        """The model was unloaded. Keep its tokenizer, for as long as its files do not change."""
        with self._lock:
            tokenizer = self._used.pop(model, None)
            if tokenizer is None:
                return
            path, state = self._read_from.pop(model)
            self._kept.pop(path, None)
            if state is not None:
                self._kept[path] = state, tokenizer
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]

    def _find(self, model: str, files: ModelFiles) -> TokenizerWrapper:
        state = _state(files)
        with self._lock:
            before, tokenizer = self._kept.pop(files.path, (None, None))
        if tokenizer is None or before != state:
            tokenizer = load_tokenizer(files)
        with self._lock:
            self._read_from[model] = files.path, state
            self._used[model] = tokenizer
        return tokenizer


def _state(files: ModelFiles) -> _State | None:
    """A value that changes when the tokenizer of a folder does; None if unknown."""
    try:
        small = [file for file in files.path.iterdir() if file.suffix != ".safetensors"]
        stats = [(file.name, file.stat()) for file in small]
    except OSError:
        return None
    states = frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    return files.chat, states


def load_tokenizer(files: ModelFiles) -> TokenizerWrapper:
    """The tokenizer of a model folder, as `mlx_lm.load` makes it.

    Code of the model is never run.

    Args:
        files: the verified folder.

    Raises:
        ModelInvalid: there is no tokenizer, or it cannot be loaded.
        MemoryError: there is not enough memory.
    """
    # Imported here because it imports mlx.
    from mlx_lm.utils import load_tokenizer as mlx_load_tokenizer

    if not any(any(files.path.glob(name)) for name in _VOCABULARIES):
        raise ModelInvalid(
            f"{files.path} has no tokenizer.",
            hint="Copy tokenizer.json and tokenizer_config.json into it, or fetch it again.",
        )
    ends = files.chat.end_tokens
    try:
        with staged_tokenizer(files) as folder, lazily_imported():
            tokenizer: TokenizerWrapper = mlx_load_tokenizer(
                folder,
                {
                    "trust_remote_code": False,
                    "local_files_only": True,
                    "config": _config(files, folder),
                },
                eos_token_ids=None if ends is None else list(ends),
            )
        if not len(tokenizer):
            raise ValueError("its vocabulary is empty")
        for name, number in numbered_tokens(files.path).items():
            if (got := tokenizer.convert_tokens_to_ids(name)) != number:
                # The library renumbers added tokens if there is a gap in their ids.
                raise ValueError(f"its token {name} is to have the id {number} and gets {got}")
        make_detokenizer(tokenizer)  # choosing one takes a moment, so it is done here
    except MemoryError:  # that is not the fault of the model
        raise
    except BaseException as error:  # transformers raises anything, including panics of Rust
        raise ModelInvalid(
            f"The tokenizer in {files.path} cannot be loaded ({type(error).__name__}: {error}).",
            hint="Fetch the model again; a tokenizer that needs its own code is not supported.",
        ) from error
    return tokenizer


def _config(files: ModelFiles, folder: Path) -> Any:
    """What transformers is to choose a tokenizer's class by; None for types unknown to it.

    By itself it would make an object of the config's class, and import that with much else: torch,
    where it is installed. For its choice the name of that class and a few values are enough.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    values = tokenizer_keys(files.config)
    model_type = values.pop("model_type", None)
    name = CONFIG_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    if name is None:
        return None
    named = type(name, (PreTrainedConfig,), {"model_type": model_type})
    return named(name_or_path=str(folder), **values)
