"""Loading and unloading weights, in slices, on the MLX thread."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_adapters, load_model

from ..errors import GuardedLLMError, LoadFailed, MemoryRefused, ModelInvalid, ModelUnsupported
from ..models.spec import ModelFiles, ModelSpec
from .encoder import open_encoder


class GivenUp(Exception):
    """The load was told to stop between two slices."""


def load(
    files: ModelFiles,
    *,
    slice_bytes: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> Any:
    """Load a model and evaluate all of it.

    Args:
        files: its verified folder.
        slice_bytes: how much to evaluate at once.
        progress: called with bytes done and in all after each slice.
        stop: asked between slices whether to give up.

    Returns:
        The mlx-lm model, or an `Encoder`. Nothing of it is in flight any more.

    Raises:
        GivenUp: `stop` said so.
    """
    encoder = open_encoder(files) if files.spec.task == "embed" else None
    model = encoder.model if encoder else _open_model(files)
    total = max(files.weight_bytes, 1)
    done = 0
    for part in _slices(model, slice_bytes):
        if stop():
            raise GivenUp
        mx.eval(part)
        done = min(done + sum(a.nbytes for a in part), total)
        progress(done, total)
    # parameters() leaves out arrays in attributes that begin with "_", such as the
    # frequencies of a scaled RoPE; evaluated later they would be a load in disguise.
    mx.eval(model)
    mx.synchronize()
    progress(total, total)
    return encoder or model


def _open_model(files: ModelFiles) -> Any:
    """A language model whose weights are not evaluated yet."""
    model, _ = load_model(files.path, lazy=True, trust_remote_code=False)
    if files.spec.adapter_path is not None:
        model = load_adapters(model, files.spec.adapter_path)
        model.eval()
    return model


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
    """Try the quantised KV cache that was asked for, on three tokens.

    Raises:
        ModelUnsupported: the model's heads cannot be packed that way.
    """
    if spec.kv_bits is None:
        return
    try:
        cache = make_prompt_cache(model)
        model(mx.array([[1, 2]]), cache=cache)
        maybe_quantize_kv_cache(cache, 0, spec.kv_group_size, spec.kv_bits)
        mx.eval(model(mx.array([[3]]), cache=cache))
    except Exception as error:  # whatever mlx says to sizes that do not divide
        raise ModelUnsupported(
            f"{spec.name} cannot keep its KV cache in {spec.kv_bits} bits with groups of "
            f"{spec.kv_group_size} ({error}).",
            hint="Leave kv_bits out, or take a kv_group_size that divides its head size.",
        ) from None


def release() -> None:
    """Give back what was just dropped; call it when no reference is left."""
    mx.synchronize()
    gc.collect()
    mx.clear_cache()


def load_error(error: BaseException, files: ModelFiles) -> GuardedLLMError:
    """What to tell the caller of a load that failed in MLX or mlx-lm.

    A new error without traceback: frames of the old one hold arrays.
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

    After a failed command buffer later results can be zeros without another error.
    """
    text = str(error).lower()
    return any(words in text for words in ("command buffer", "illegal memory", "device-side"))
