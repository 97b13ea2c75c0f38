"""Convert a llama GGUF file to an MLX model folder. Runs in a separate process."""

from __future__ import annotations

import json
from pathlib import Path

from .header import read_gguf
from .llama import BITS, GROUP_SIZE, check_llama, llama_config, mlx_name
from .tokenizer import stop_tokens, tokenizer_files


def convert(source: Path, folder: Path, *, dequantize: bool) -> None:
    """Convert a file. The caller takes care of atomicity and of the process.

    Args:
        source: the GGUF file.
        folder: an existing empty folder.
        dequantize: write bfloat16 weights instead of the file's quantised layers.

    Raises:
        ModelError: as `read_gguf`, `check_llama` and `tokenizer_files` do.
    """
    import mlx.core as mx

    header = read_gguf(source)
    check_llama(header, str(source))
    tokenizer, tokenizer_config = tokenizer_files(header, str(source))
    config = llama_config(header, str(source), quantised=not dequantize)
    # The GPU may be busy in the parent; nothing here needs it.
    mx.set_default_device(mx.cpu)
    arrays = mx.load(str(source), format="gguf")
    assert isinstance(arrays, dict)
    weights: dict[str, mx.array] = {}
    for name, info in header.tensors.items():
        stem = name.removesuffix(".weight")
        parts = [f"{stem}.{part}" for part in ("weight", "scales", "biases")]
        if not dequantize:
            # As in the file, including its float32 norms. They make the activations float32,
            # which on a CPU is several times faster than 16 bits.
            weights |= {mlx_name(part): arrays[part] for part in parts if part in arrays}
        elif info.type in BITS:
            weight, scales, biases = (arrays[part] for part in parts)
            # In float32, because in float16 the sum of scale * q and bias would lose precision.
            whole = mx.dequantize(
                weight,
                scales.astype(mx.float32),
                biases.astype(mx.float32),
                group_size=GROUP_SIZE,
                bits=BITS[info.type],
            )
            weights[mlx_name(name)] = whole.astype(mx.bfloat16)
        else:
            weights[mlx_name(name)] = arrays[name].astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    generation = {
        "eos_token_id": stop_tokens(header),
        "bos_token_id": config["bos_token_id"],
    }
    for file, content in {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
    }.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / file).write_text(text, encoding="utf-8")
