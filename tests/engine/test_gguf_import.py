"""Real conversions of small GGUF files; MLX runs only in the importing process."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlx_guarded_llm.models import ModelSpec, import_gguf, verify
from mlx_guarded_llm.models.gguf.llama import mlx_name
from tests.unit.models.gguf_files import SHAPES, Values, all_matrices, write_gguf

DTYPES = {"F32": "<f4", "F16": "<f2", "U32": "<u4", "BF16": "<u2"}


def _read(file: Path) -> dict[str, npt.NDArray[Any]]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(content[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = array
    return arrays


def _whole(arrays: dict[str, npt.NDArray[Any]], name: str) -> Values:
    """The values of a tensor, dequantised by MLX's rule: scale * q + bias in groups of 32."""
    weight = arrays[name]
    scales = arrays.get(name.replace(".weight", ".scales"))
    if scales is None:
        return weight.astype(np.float32)
    biases = arrays[name.replace(".weight", ".biases")]
    per_word = scales.shape[-1] * 32 // weight.shape[-1]
    bits = 32 // per_word
    shifts = np.arange(per_word, dtype=np.uint32) * bits
    q = (weight[..., None] >> shifts & (2**bits - 1)).reshape(*scales.shape, 32)
    values = scales[..., None].astype(np.float32) * q + biases[..., None].astype(np.float32)
    whole: Values = values.reshape(weight.shape[0], -1)
    return whole


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_every_value_survives(tmp_path: Path, kind: str, dequantize: bool) -> None:
    values = write_gguf(tmp_path / "m.gguf", kinds=all_matrices(kind))
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "model", dequantize=dequantize)
    arrays = _read(folder / "model.safetensors")
    for name in SHAPES:
        found = _whole(arrays, mlx_name(name))
        # bfloat16 keeps 8 bits of the mantissa, float16 biases keep 11.
        tolerance = 2**-8 if dequantize else 2**-10
        np.testing.assert_allclose(found, values[name], rtol=tolerance, atol=tolerance / 10)
    verify(ModelSpec(name="m", kind="folder", location=str(folder)), folder)


LOAD = """
import sys
import mlx.core as mx
from mlx_lm import load
for folder in sys.argv[1:]:
    model, tokenizer = load(folder)
    logits = model(mx.array([tokenizer.encode("abc abc12")]))
    assert mx.isfinite(logits).all().item()
    print(logits[0, -1, :4].tolist())
"""


def test_mlx_lm_loads_each_import_alike(tmp_path: Path) -> None:
    kinds = {**all_matrices("Q4_1"), "token_embd.weight": "Q8_0"}
    write_gguf(tmp_path / "m.gguf", kinds=kinds)
    folders = [
        import_gguf(tmp_path / "m.gguf", tmp_path / str(dequantize), dequantize=dequantize)
        for dequantize in (False, True)
    ]
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    kept, whole = (json.loads(line) for line in ended.stdout.splitlines())
    np.testing.assert_allclose(kept, whole, atol=0.02)


def test_the_command_line_converts(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    command = [sys.executable, "-m", "mlx_guarded_llm.models.gguf", "m.gguf"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert run("out").returncode == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = run("out")
    assert again.returncode == 2
    assert "not empty" in again.stderr
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    broken = run("other")
    assert broken.returncode == 1
    assert "truncated" in broken.stderr
    assert "Traceback" not in broken.stderr
