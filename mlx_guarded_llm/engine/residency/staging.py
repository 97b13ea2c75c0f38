"""The folder that mlx-lm and transformers read: what verification found, and nothing else.

Both have their own ideas of a model folder. mlx-lm reads every `model*.safetensors` and treats
the folder's name as a glob pattern; transformers looks for a chat template in several places,
and checks the config.json by rules that have nothing to do with the tokenizer. So they get a
temporary folder, in which the large files are links.
"""

from __future__ import annotations

import glob
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...models.files import VOCABULARY_LIMIT, UnreadableFile, check_regular, read_optional
from ...models.spec import ModelFiles

# The keys of a config.json that say which tokenizer a model has.
_TOKENIZER_KEYS = ("architectures", "model_name", "model_type", "tokenizer_class",
                   "transformers_version")  # fmt: skip
# Files that are written anew, that a tokenizer does not need, or that may have a chat template.
_LEFT_OUT = ("config.json", "generation_config.json", "tokenizer_config.json",
             "chat_template.jinja", "chat_template.json", "processor_config.json")  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".h5", ".py")


@contextmanager
def staged_weights(files: ModelFiles) -> Iterator[Path]:
    """A folder with the config and the weights of a model. Open files outlive it."""
    with _folder() as folder:
        _write(folder / "config.json", files.config)
        for i, file in enumerate(files.weight_files):
            (folder / f"model-{i:05d}.safetensors").symlink_to(file.absolute())
        yield folder


@contextmanager
def staged_tokenizer(files: ModelFiles) -> Iterator[Path]:
    """A folder with the tokenizer of a model and its chat template, as verification found it.

    Raises:
        UnreadableFile: its tokenizer_config.json is no longer a JSON object.
    """
    with _folder() as folder:
        _write(folder / "config.json", tokenizer_keys(files.config))
        settings = read_optional(files.path / "tokenizer_config.json")
        settings.pop("chat_template", None)
        template = files.chat.template
        if isinstance(template, str):
            settings["chat_template"] = template
        elif template is not None:
            settings["chat_template"] = [
                {"name": name, "template": text} for name, text in template.items()
            ]
        _write(folder / "tokenizer_config.json", settings)
        for file in files.path.iterdir():
            if file.name in _LEFT_OUT or file.suffix in _WEIGHTS:
                continue
            try:
                check_regular(file, limit=VOCABULARY_LIMIT)
            except UnreadableFile:
                continue  # the files that a tokenizer needs were verified
            (folder / file.name).symlink_to(file.absolute())
        yield folder


def tokenizer_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says about the tokenizer."""
    return {key: config[key] for key in _TOKENIZER_KEYS if key in config}


@contextmanager
def _folder() -> Iterator[Path]:
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="mlx-guarded-",
        dir="/tmp" if glob.has_magic(usual) else usual,  # mlx-lm treats the path as a glob pattern
        ignore_cleanup_errors=True,  # at exit it is removed while a thread may still fill it
    ) as folder:
        yield Path(folder)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value)), encoding="utf-8")
