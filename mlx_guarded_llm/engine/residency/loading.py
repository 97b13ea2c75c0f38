"""Loading and unloading weights, in slices, on the MLX thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_adapters, load_model

from ...errors import GuardedLLMError, LoadFailed, MemoryRefused, ModelInvalid, ModelUnsupported
from ...models.files import UnreadableFile, check_unchanged
from ...models.spec import ModelFiles, ModelSpec
from ...models.weights import read_tensors
from ..decode.encoder import open_encoder
from .device import on_cuda
from .folding import fold_rows
from .staging import staged_weights

# How the names of the weights end that LoRA and DoRA add to a layer.
_ADAPTER_WEIGHTS = (".lora_a", ".lora_b", ".m")


class GivenUp(Exception):
    """The load was stopped between two slices."""


def load(
    files: ModelFiles,
    *,
    slice_bytes: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
    split: Callable[[Any], None] | None = None,
) -> Any:
    """Load a model and evaluate all of it, or all of this rank's part.

    Args:
        files: its verified folder.
        slice_bytes: how many bytes to evaluate at once.
        progress: called after each slice, with the bytes done and the total.
        stop: called between slices; returns whether to give up.
        split: leaves of the model only what this rank computes; None for all of it.

    Returns:
        The mlx-lm model, or an `Encoder`, with nothing in flight.

    Raises:
        GivenUp: `stop` returned True.
        LoadFailed: the files have changed since they were verified.
    """
    _check_unchanged(files)
    encoder = open_encoder(files) if files.spec.task == "embed" else None
    model = encoder.model if encoder else _open_model(files)
    _check_types(model, files.spec)
    if split is not None:
        split(model)
    if on_cuda():
        fold_rows(model)
    total = max(files.weight_bytes, 1)
    done = 0
    for part in _slices(model, slice_bytes):
        if stop():
            raise GivenUp
        mx.eval(part)
        done = min(done + sum(a.nbytes for a in part), total)
        progress(done, total)
    # parameters() leaves out arrays in attributes that begin with "_", such as the frequencies
    # of a scaled RoPE. Evaluated later they would be part of a load outside of it.
    mx.eval(model)
    mx.synchronize()
    _check_unchanged(files)  # evaluation is when the data are read
    progress(total, total)
    return encoder or model


def _check_unchanged(files: ModelFiles) -> None:
    try:
        check_unchanged(files.stamps)
    except UnreadableFile as error:
        raise LoadFailed(
            f"{files.spec.name} could not be loaded: {error}.",
            hint="Ask again when nothing writes to its folder: it is then checked anew.",
        ) from None


def _open_model(files: ModelFiles) -> Any:
    """A language model whose weights are not evaluated yet."""
    with staged_weights(files) as folder:
        model, _ = load_model(folder, lazy=True, trust_remote_code=False)
    if files.spec.adapter_path is not None:
        model = _with_adapter(model, Path(files.spec.adapter_path))
    return model


def _with_adapter(model: Any, folder: Path) -> Any:
    """Add an adapter, which must be complete: mlx-lm gives missing weights random values.

    Raises:
        ModelInvalid: weights that its config mentions are missing.
    """
    own = _parameters(model)
    model = load_adapters(model, str(folder))
    model.eval()
    added = {name for name in _parameters(model) - own if name.endswith(_ADAPTER_WEIGHTS)}
    missing = added - read_tensors(folder / "adapters.safetensors").tensors.keys()
    if missing:
        raise ModelInvalid(
            f"the adapter {folder} lacks {len(missing)} of the weights that its "
            f"adapter_config.json speaks of, such as {min(missing)}.",
            hint="Take adapter_config.json and adapters.safetensors of one and the same training.",
        )
    return model


def _parameters(model: Any) -> set[str]:
    leaves: Any = tree_flatten(model.parameters())
    return {name for name, _ in leaves}


def _check_types(model: Any, spec: ModelSpec) -> None:
    """Check that no layer would compute with raw bytes.

    MLX reads 8-bit floats such as F8_E4M3 as bytes, and would multiply by those.

    Raises:
        ModelUnsupported: weights are integers without scales.
    """
    leaves: Any = tree_flatten(model.parameters())
    parts = [(*name.rpartition("."), array.dtype) for name, array in leaves]
    scaled = {layer for layer, _, kind, _ in parts if "scale" in kind}
    for layer, _, kind, dtype in parts:
        if kind == "weight" and layer not in scaled and not mx.issubdtype(dtype, mx.inexact):
            raise ModelUnsupported(
                f"{spec.name}: the weights of {layer} are whole numbers ({dtype}) without scales; "
                "mlx-lm does not know what they stand for.",
                hint="Use a version of the model in bfloat16, or one that mlx-lm quantised.",
            )


def _slices(model: Any, slice_bytes: int) -> Iterator[list[mx.array]]:
    part: list[mx.array] = []
    size = 0
    leaves: Any = tree_flatten(model.parameters())
    for _, array in leaves:
        part.append(array)
        size += array.nbytes
        if size >= slice_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


def check_kv_bits(model: Any, spec: ModelSpec) -> None:
    """Try the requested quantised KV cache on three tokens.

    Raises:
        ModelUnsupported: the model's heads cannot be packed like this.
    """
    if spec.kv_bits is None:
        return
    try:
        cache = make_prompt_cache(model)
        mx.eval(model(mx.array([[1, 2]]), cache=cache))
        maybe_quantize_kv_cache(cache, 0, spec.kv_group_size, spec.kv_bits)
        mx.eval(model(mx.array([[3]]), cache=cache))
    except Exception as error:  # mlx raises different types for sizes that do not divide
        raise ModelUnsupported(
            f"{spec.name} cannot keep its KV cache in {spec.kv_bits} bits with groups of "
            f"{spec.kv_group_size} ({error}).",
            hint="Leave kv_bits out, or take a kv_group_size that divides its head size.",
        ) from None


def load_error(error: BaseException, files: ModelFiles) -> GuardedLLMError:
    """The error for the caller of a load that failed in MLX or mlx-lm.

    It is a new one without a traceback, because frames of the old one hold arrays.
    """
    text = f"{type(error).__name__}: {error}".strip()
    name = files.spec.name
    if out_of_memory(error):
        return MemoryRefused(
            f"{name} ran out of memory while loading ({text}).",
            needed_bytes=files.weight_bytes,
            budget_bytes=int(mx.get_active_memory()),
            hint="Lower memory_budget so that other models are evicted first.",
        )
    if isinstance(error, ValueError) and "not supported" in str(error):
        return ModelUnsupported(f"MLX cannot run {name} ({text}).")
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return ModelInvalid(
            f"the weights of {name} do not fit its config ({text}).",
            hint=f"Look at {files.path / 'config.json'}, or fetch the model again.",
        )
    return LoadFailed(f"{name} could not be loaded ({text}).")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of MLX says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "unable to allocate", "insufficient memory")
    )


def condemns_process(error: BaseException) -> bool:
    """Whether nothing that MLX computes after this error can be trusted.

    After a failed command buffer, later results can be zeros without any further error.
    """
    text = str(error).lower()
    return any(words in text for words in ("command buffer", "illegal memory", "device-side"))
