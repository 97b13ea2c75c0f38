"""Checking a model folder before anything is loaded from it.

This reads config.json, the headers of the weights and a few sampled blocks, which is enough to find
a missing, truncated or wrong file in milliseconds, whatever its size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, ModelInvalid, ModelUnsupported
from .architectures import check_supported, source_of
from .chat import read_chat
from .config import context_window, spell_out, text_config, untie, widest_window
from .encoders import check_encoder, encoder_source, encoder_window, only_embeds
from .files import (
    VOCABULARY_LIMIT,
    UnreadableFile,
    check_regular,
    open_regular,
    parse_object,
    read_bytes,
    read_object,
    read_optional,
    stamp,
)
from .hosts import read_hosts
from .safetensors import Header
from .sizes import activation_bytes, check_sizes, embedding_rows
from .spec import ModelFiles, ModelSpec, OnProgress, Progress
from .weights import check_complete, read_tensors, weight_files

# The files that mlx-lm and transformers read tokenizers from.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_TOKENIZER_FILES = (*_VOCABULARIES, "merges.txt", "special_tokens_map.json", "added_tokens.json")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".npz", ".h5", ".msgpack")
_LEFTOVERS = (".incomplete", ".part", ".partial", ".crdownload")
_SAMPLES, _SAMPLE_BYTES = 16, 4096


def verify(spec: ModelSpec, folder: Path, *, progress: OnProgress | None = None) -> ModelFiles:
    """Check a folder, and collect what the other layers need to know about it.

    Args:
        spec: what was requested; its adapter is checked as well.
        folder: with config.json, the safetensors and the tokenizer.
        progress: called with the bytes whose headers were checked.

    Raises:
        ModelInvalid: something is missing, truncated or not what it claims to be.
        ModelUnsupported: it is valid, but mlx-lm cannot run it.
        InvalidRequest: the requested context window is larger than that of the model.
    """
    try:
        return _verify(spec, folder, progress)
    except UnreadableFile as error:
        raise ModelInvalid(f"{spec.name}: {error}.", hint=_repair(spec)) from error
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
    config = spell_out(config, encoder_source if spec.task == "embed" else source_of)
    generation = read_optional(folder / "generation_config.json")
    settings = read_optional(folder / "tokenizer_config.json")
    files = _weight_files(spec, folder, names)
    headers: dict[Path, Header] = {}
    stamps = {file: stamp(file) for file in files}  # before any of them is read
    total = sum(size for size, _ in stamps.values())
    done = 0
    for file in files:
        headers[file] = read_tensors(file)
        done += stamps[file][0]
        if progress:
            progress(Progress("verify", done, total))
    check_complete(folder, headers)
    tensors = {name: t for header in headers.values() for name, t in header.tensors.items()}
    check_sizes(config, tensors)
    if any(name.endswith("lm_head.weight") for name in tensors):
        config = untie(config)
    _check_tokenizer(spec, folder, names, settings)
    digest = hashlib.sha256(raw_config)
    if spec.kind == "hub":
        digest.update(folder.name.encode())  # the commit
    if spec.adapter_path is not None:
        adapter, adapter_config = _read_adapter(spec, Path(spec.adapter_path))
        stamps[adapter] = stamp(adapter)
        headers[adapter] = read_tensors(adapter)
        digest.update(adapter_config)
    for file, header in headers.items():
        _digest_file(digest, file, header)
    return ModelFiles(
        spec=spec,
        path=folder,
        config=config,
        weight_files=tuple(files),
        stamps=stamps,
        weight_bytes=sum(t.nbytes for h in headers.values() for t in h.tensors.values()),
        fingerprint=digest.hexdigest()[:32],
        context_window=_window(spec, config, settings),
        revision=folder.name if spec.kind == "hub" else "",
        generation=generation,
        hosts=None if spec.hosts is None else read_hosts(spec.hosts),
        vocabulary=embedding_rows(config, tensors),
        activation_bytes=activation_bytes(tensors),
        chat=read_chat(folder, config, generation=generation, settings=settings),
    )


def _check_task(spec: ModelSpec, config: Mapping[str, Any], folder: Path) -> None:
    """Check that the model is for this task: embedding models do not generate, nor vice versa."""
    if spec.task == "embed":
        check_encoder(config, folder)
    elif only_embeds(config):
        raise not_generating(spec.name)
    else:
        check_supported(config)


def is_embedder(folder: Path) -> bool:
    """Whether a folder contains a model that can only embed texts."""
    try:
        config = read_object(folder / "config.json")
    except UnreadableFile:
        return False  # `verify` reports what is wrong with it
    return isinstance(config.get("model_type"), str) and only_embeds(config)


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


def _read_config(spec: ModelSpec, file: Path) -> tuple[bytes, dict[str, Any]]:
    raw = read_bytes(file)
    config = parse_object(file, raw)
    if "quantization_config" not in text_config(config):
        # NVIDIA's ModelOpt keeps it in a separate file.
        quantised = read_optional(file.parent / "hf_quant_config.json")
        config |= {"quantization_config": quantised} if quantised else {}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelInvalid(
            f"{spec.name}: {file} has no model_type.",
            hint="It is no model for mlx-lm, or an adapter: give that as adapter_path.",
        )
    return raw, config


def _weight_files(spec: ModelSpec, folder: Path, names: Iterable[str]) -> list[Path]:
    if files := weight_files(folder, names):
        return files
    other = next((n for n in names if n.endswith(_OTHER_WEIGHTS)), None)
    if other:
        raise ModelUnsupported(
            f"{spec.name}: the weights are in {other}; only safetensors are read.",
            hint="Convert the model: `mlx_lm.convert --hf-path <folder> --mlx-path <new folder>`.",
        )
    raise ModelInvalid(f"{spec.name}: {folder} has no model*.safetensors.", hint=_repair(spec))


def _check_tokenizer(
    spec: ModelSpec, folder: Path, names: Iterable[str], settings: Mapping[str, Any]
) -> None:
    names = set(names)
    if not names.intersection(_VOCABULARIES) and not any(
        name.endswith((".tiktoken", ".model")) for name in names
    ):
        raise ModelInvalid(
            f"{spec.name}: {folder} has no tokenizer (tokenizer.json or tokenizer.model).",
            hint="Copy the tokenizer files of the original model into the folder.",
        )
    for name in names.intersection(_TOKENIZER_FILES):
        check_regular(folder / name, limit=VOCABULARY_LIMIT)
    if "tokenizer.json" in names:
        _check_ends(folder / "tokenizer.json")
    else:
        auto_map = settings.get("auto_map")
        if isinstance(auto_map, dict) and "AutoTokenizer" in auto_map:
            raise ModelUnsupported(
                f"{spec.name}: its tokenizer runs its own code, which is not allowed.",
                hint="Use a version of the model that has a tokenizer.json.",
            )


def _check_ends(file: Path) -> None:
    # Parsing 30 MB of vocabulary takes half a second; a truncated one lacks its end.
    with open_regular(file, limit=VOCABULARY_LIMIT) as content:
        start = content.read(64).lstrip()
        content.seek(-min(64, os.fstat(content.fileno()).st_size), os.SEEK_END)
        end = content.read().rstrip()
    if not (start.startswith(b"{") and end.endswith(b"}")):
        raise UnreadableFile(f"{file} is not JSON")


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
    raw = read_bytes(folder / "adapter_config.json")
    config = parse_object(folder / "adapter_config.json", raw)
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
    """Add the header, the size and evenly spaced blocks of the content to a hash."""
    digest.update(header.raw)
    with open_regular(file) as content:
        size = os.fstat(content.fileno()).st_size
        digest.update(str(size).encode())
        for i in range(_SAMPLES):
            content.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(content.read(_SAMPLE_BYTES))


def _window(spec: ModelSpec, config: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    own = context_window(config, settings)
    most = widest_window(config)
    if spec.task == "embed":
        own = most = encoder_window(config, settings, own)
    if spec.context_window is None:
        return own
    if spec.context_window > most:
        raise InvalidRequest(
            f"{spec.name}: the context_window {spec.context_window} is more than the {most:.0f} "
            "tokens that the model can attend to.",
            hint="Leave context_window out, give a smaller one, or take a model with a larger one.",
        )
    return spec.context_window
