"""Checks a model folder before anything is loaded from it.

Reads config.json, the headers of the weights and a few sampled blocks: enough to
find a missing, truncated or foreign file in milliseconds, whatever the size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelInvalid, ModelUnsupported
from .architectures import check_supported
from .encoders import check_encoder, encoder_window, only_embeds
from .safetensors import BrokenFile, Header, read_header
from .spec import ModelFiles, ModelSpec, OnProgress, Progress

DEFAULT_CONTEXT_WINDOW = 4096  # small: too large would give nonsense without an error
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "max_sequence_length",
    "max_seq_len",
    "model_max_length",
    "n_positions",
    "n_ctx",
    "seq_length",
)
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_FOREIGN_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".npz", ".h5", ".msgpack")
_LEFTOVERS = (".incomplete", ".part", ".partial", ".crdownload")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_SAMPLES, _SAMPLE_BYTES = 16, 4096


def verify(spec: ModelSpec, folder: Path, *, progress: OnProgress | None = None) -> ModelFiles:
    """Checks a folder and gathers what the other layers want to know of it.

    Args:
        spec: what was asked for; its adapter is checked as well.
        folder: holds config.json, model*.safetensors and the tokenizer.
        progress: told of the bytes whose headers were checked.

    Raises:
        ModelInvalid: something is missing, truncated or not what it claims to be.
        ModelUnsupported: sound, but mlx-lm cannot run it.
    """
    try:
        return _verify(spec, folder, progress)
    except OSError as error:
        raise ModelInvalid(
            f"{spec.name}: {folder} cannot be read: {error}.",
            hint="Check the path and its permissions.",
        ) from error


def _verify(spec: ModelSpec, folder: Path, progress: OnProgress | None) -> ModelFiles:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        raise ModelInvalid(f"{spec.name}: the folder {folder} is empty.", hint=_repair(spec))
    leftover = next((n for n in names if n.endswith(_LEFTOVERS) and _final(n) not in names), None)
    if leftover:
        raise ModelInvalid(
            f"{spec.name}: {folder} is half-fetched, {leftover} is left over.", hint=_repair(spec)
        )
    raw_config, config = _read_config(spec, folder / "config.json")
    _check_task(spec, config, folder)
    files = _weight_files(spec, folder, names)
    headers: dict[Path, Header] = {}
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        headers[file] = _header(spec, file)
        done += file.stat().st_size
        if progress:
            progress(Progress("verify", done, total))
    _check_shards(spec, folder, headers)
    _check_tokenizer(spec, folder, names)
    digest = hashlib.sha256(raw_config)
    if spec.kind == "hub":
        digest.update(folder.name.encode())  # the commit
    if spec.adapter_path is not None:
        adapter, adapter_config = _read_adapter(spec, Path(spec.adapter_path))
        headers[adapter] = _header(spec, adapter)
        digest.update(adapter_config)
    for file, header in headers.items():
        _digest_file(digest, file, header)
    return ModelFiles(
        spec=spec,
        path=folder,
        config=config,
        weight_files=tuple(files),
        weight_bytes=sum(t.nbytes for h in headers.values() for t in h.tensors.values()),
        fingerprint=digest.hexdigest()[:32],
        context_window=spec.context_window or _window(spec, config, folder),
        revision=folder.name if spec.kind == "hub" else "",
    )


def _check_task(spec: ModelSpec, config: Mapping[str, Any], folder: Path) -> None:
    """An embedding model does not generate, nor the other way round."""
    if spec.task == "embed":
        check_encoder(config, folder)
    elif only_embeds(config):
        raise not_generating(spec.name)
    else:
        check_supported(config)


def is_embedder(folder: Path) -> bool:
    """Whether a folder holds a model that can embed texts and do nothing else."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return isinstance(config["model_type"], str) and only_embeds(config)
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False  # `verify` says what is wrong with it


def not_generating(name: str) -> ModelUnsupported:
    """The error for an embedding model that is asked to generate."""
    return ModelUnsupported(
        f"{name} is an embedding model and cannot generate.",
        hint="Get vectors from it with embed(), or name a language model.",
    )


def _repair(spec: ModelSpec) -> str:
    if spec.kind == "folder":
        return "Copy or download the folder again."
    return f"Remove {spec.name} and fetch it again."


def _final(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _read_object(spec: ModelSpec, file: Path) -> tuple[bytes, dict[str, Any]]:
    if not file.is_file():
        raise ModelInvalid(f"{spec.name}: {file} is missing.", hint=_repair(spec))
    raw = file.read_bytes()
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{spec.name}: {file} is not JSON.", hint=_repair(spec)) from error
    if not isinstance(value, dict):
        raise ModelInvalid(f"{spec.name}: {file} is not a JSON object.", hint=_repair(spec))
    return raw, value


def _read_config(spec: ModelSpec, file: Path) -> tuple[bytes, dict[str, Any]]:
    raw, config = _read_object(spec, file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelInvalid(
            f"{spec.name}: {file} has no model_type.",
            hint="It is no model for mlx-lm, or an adapter: give that as adapter_path.",
        )
    return raw, config


def _weight_files(spec: ModelSpec, folder: Path, names: Iterable[str]) -> list[Path]:
    # mlx_lm.load reads model*.safetensors and nothing else.
    weights = [n for n in names if n.startswith("model") and n.endswith(".safetensors")]
    if weights:
        return [folder / name for name in weights]
    foreign = next((n for n in names if n.endswith(_FOREIGN_WEIGHTS)), None)
    if foreign:
        raise ModelUnsupported(
            f"{spec.name}: the weights are in {foreign}; only safetensors are read.",
            hint="Convert the model: `mlx_lm.convert --hf-path <folder> --mlx-path <new folder>`.",
        )
    raise ModelInvalid(f"{spec.name}: {folder} has no model*.safetensors.", hint=_repair(spec))


def _header(spec: ModelSpec, file: Path) -> Header:
    try:
        return read_header(file)
    except BrokenFile as error:
        raise ModelInvalid(f"{spec.name}: {file} {error}.", hint=_repair(spec)) from error


def _check_shards(spec: ModelSpec, folder: Path, headers: Mapping[Path, Header]) -> None:
    present = {file.name for file in headers}
    missing: list[str] = []
    for name in present:
        if match := _SHARD.fullmatch(name):
            stem, _, count = match.groups()
            shards = (f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1))
            missing += [shard for shard in shards if shard not in present]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        tensors = {name for header in headers.values() for name in header.tensors}
        weight_map = _read_object(spec, index)[1].get("weight_map")
        if isinstance(weight_map, dict):
            # Converted folders may keep the index of their source: a file that the
            # index names is missed only when its tensors are nowhere else.
            missing += [
                str(file)
                for tensor, file in weight_map.items()
                if file not in present and tensor not in tensors
            ]
    if missing:
        first = min(missing)
        raise ModelInvalid(
            f"{spec.name}: {len(set(missing))} weight files are missing, the first is {first}.",
            hint=_repair(spec),
        )


def _check_tokenizer(spec: ModelSpec, folder: Path, names: Iterable[str]) -> None:
    names = set(names)
    if not names.intersection(_TOKENIZER_FILES) and not any(
        name.endswith((".tiktoken", ".model")) for name in names
    ):
        raise ModelInvalid(
            f"{spec.name}: {folder} has no tokenizer (tokenizer.json or tokenizer.model).",
            hint="Copy the tokenizer files of the original model into the folder.",
        )
    if "tokenizer.json" in names:
        _check_ends(spec, folder / "tokenizer.json")
    elif (folder / "tokenizer_config.json").is_file():
        auto_map = _read_object(spec, folder / "tokenizer_config.json")[1].get("auto_map")
        if isinstance(auto_map, dict) and "AutoTokenizer" in auto_map:
            raise ModelUnsupported(
                f"{spec.name}: its tokenizer runs its own code, which is not allowed.",
                hint="Use a version of the model that has a tokenizer.json.",
            )


def _check_ends(spec: ModelSpec, file: Path) -> None:
    # Parsing 30 MB of vocabulary takes half a second; a truncated one lacks its end.
    with file.open("rb") as content:
        start = content.read(64).lstrip()
        content.seek(max(0, file.stat().st_size - 64))
        end = content.read().rstrip()
    if not (start.startswith(b"{") and end.endswith(b"}")):
        raise ModelInvalid(f"{spec.name}: {file} is not JSON.", hint=_repair(spec))


def _read_adapter(spec: ModelSpec, folder: Path) -> tuple[Path, bytes]:
    """The adapter's weight file and the bytes of its config."""
    if not folder.is_dir():
        raise ModelInvalid(
            f"{spec.name}: there is no adapter folder {folder}.", hint="Check adapter_path."
        )
    weights = folder / "adapters.safetensors"
    if not weights.is_file() and (folder / "adapter_model.safetensors").is_file():
        raise ModelUnsupported(
            f"{spec.name}: {folder} is a PEFT adapter, which mlx-lm does not read.",
            hint="Train it with `mlx_lm.lora`, or merge it into the model.",
        )
    raw, config = _read_object(spec, folder / "adapter_config.json")
    if not weights.is_file():
        raise ModelInvalid(f"{spec.name}: {weights} is missing.", hint="Check adapter_path.")
    wanted = ("num_layers", "lora_parameters")
    absent = [key for key in wanted if key not in config]
    if absent and config.get("fine_tune_type") != "full":
        raise ModelInvalid(
            f"{spec.name}: {folder / 'adapter_config.json'} lacks {' and '.join(absent)}.",
            hint="Use the adapter_config.json that `mlx_lm.lora` wrote.",
        )
    return weights, raw


def _digest_file(digest: hashlib._Hash, file: Path, header: Header) -> None:
    """Adds the header, the size and evenly spaced blocks of the content."""
    size = file.stat().st_size
    digest.update(header.raw)
    digest.update(str(size).encode())
    with file.open("rb") as content:
        for i in range(_SAMPLES):
            content.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(content.read(_SAMPLE_BYTES))


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model, with the outer config's keys behind it."""
    for key in _TEXT_CONFIGS:
        inner = config.get(key)
        if isinstance(inner, dict):
            return {**config, **inner}
    return dict(config)


def _window(spec: ModelSpec, config: Mapping[str, Any], folder: Path) -> int:
    window = _context_window(config, folder)
    return encoder_window(config, folder, window) if spec.task == "embed" else window


def _context_window(config: Mapping[str, Any], folder: Path) -> int:
    flat = text_config(config)
    for key in _CONTEXT_KEYS:
        if (window := _positive(flat.get(key))) is not None:
            return window
    try:
        tokenizer = json.loads((folder / "tokenizer_config.json").read_bytes())
        window = _positive(tokenizer.get("model_max_length"))
    except (OSError, ValueError, RecursionError, AttributeError):
        window = None
    # Tokenizers without a limit write 10**30.
    return window if window is not None and window <= 2**24 else DEFAULT_CONTEXT_WINDOW


def _positive(value: object) -> int | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if fine and isinstance(value, int) else None
