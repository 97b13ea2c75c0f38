"""Model folders that somebody broke on purpose: an answer, or a typed error; nobody else notices.

`MLX_GUARDED_FUZZ=5000` makes more of them, `MLX_GUARDED_FUZZ_SEED` others.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import GuardedLLMError, ModelError
from mlx_guarded_llm.memory.footprint import predict
from mlx_guarded_llm.models import ModelFiles, ModelSpec, verify
from mlx_guarded_llm.models.card import make_card
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.engine._backend import limit_memory

COUNT = int(os.environ.get("MLX_GUARDED_FUZZ", "100"))
SEED = int(os.environ.get("MLX_GUARDED_FUZZ_SEED", "1"))
LOADED = max(6, COUNT // 20)  # survivors that are loaded for real

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 10**5, 10**9, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "llama", "../../etc", "\0", "é" * 1000, [], [None], [[1]],
    ["full_attention"] * 5, {}, {"a": 1}, {"rope_type": "yarn", "factor": "x"},
)  # fmt: skip
JSON_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
FILES = (*JSON_FILES, "chat_template.jinja", "model.safetensors", "model.safetensors.index.json",
         "special_tokens_map.json", "added_tokens.json", "chat_template.json",
         "processor_config.json", "hf_quant_config.json")  # fmt: skip

Mutation = Callable[[Path, random.Random], None]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value; of long ones the first few."""
    if isinstance(value, dict):
        own: list[tuple[Any, Any]] = [(value, key) for key in list(value)[:40]]
    elif isinstance(value, list):
        own = [(value, i) for i in range(min(len(value), 5))]
    else:
        return []
    return own + [place for container, key in own for place in _places(container[key])]


def _content(file: Path) -> Any:
    """What is in a JSON file, if it still is one."""
    if not file.is_file() or file.stat().st_size > 2**24:
        return None
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None


def odd_value(folder: Path, choice: random.Random) -> None:
    file = folder / choice.choice(JSON_FILES)
    if not os.path.lexists(file):
        file.write_text("{}")
    content = _content(file)
    if isinstance(content, dict):
        content.setdefault(choice.choice(KEYS), None)
    if places := _places(content):
        container, key = choice.choice(places)
        if choice.random() < 0.2:
            del container[key]
        else:
            container[key] = choice.choice(ODD)
        file.write_text(json.dumps(content))


KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "eos_token_id", "chat_template",
        "quantization", "text_config", "layer_types", "head_dim", "tie_word_embeddings",
        "sliding_window", "num_experts", "auto_map", "added_tokens_decoder",
        "model_max_length")  # fmt: skip


def odd_text(folder: Path, choice: random.Random) -> None:
    texts = ("", "{", "[]", "null", "[" * 10**5, '{"a":' * 10**4, "{" + '"a":1,' * 10**4 + "}",
             '{"weight_map":{"x":5,"z":[1]}}', '{"weight_map":{"x":"../y"}}',
             '{"weight_map":{"x":"gone.safetensors"}}', "{%", "{{ 1/0 }}", "\0")  # fmt: skip
    file = folder / choice.choice(FILES)
    file.unlink(missing_ok=True)
    file.write_text(choice.choice(texts))


def special_file(folder: Path, choice: random.Random) -> None:
    file = folder / choice.choice(FILES)
    file.unlink(missing_ok=True)
    kind = choice.randrange(5)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.symlink_to("/dev/zero")
    elif kind == 2:
        file.mkdir()
    elif kind == 3:
        file.symlink_to(folder / "nowhere")
    else:
        with file.open("wb") as content:
            content.truncate(2**40)


def cut_off(folder: Path, choice: random.Random) -> None:
    file = folder / choice.choice((*JSON_FILES[:3], "model.safetensors"))
    if file.is_file() and not file.is_symlink():
        os.truncate(file, choice.randrange(min(file.stat().st_size, 2**20) + 1))


def odd_header(folder: Path, choice: random.Random) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes() if file.is_file() and file.stat().st_size < 2**24 else b""
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        container, key = choice.choice(_places(header))
    except (struct.error, ValueError, RecursionError, IndexError):
        return
    container[key] = choice.choice((*ODD, "F64", "F8_E5M2", "U32", [0, 10**12], [1, 2, 3]))
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def odd_bytes(folder: Path, choice: random.Random) -> None:
    file = folder / choice.choice((*JSON_FILES[:3], "model.safetensors"))
    if not file.is_file() or file.stat().st_size > 2**24:
        return
    content = bytearray(file.read_bytes())
    for _ in range(choice.randrange(1, 5)):
        if content:
            content[choice.randrange(min(len(content), 2000))] = choice.randrange(256)
    file.write_bytes(content)


MUTATIONS: tuple[Mutation, ...] = (
    odd_value, odd_value, odd_value, odd_value, odd_text, special_file, cut_off, odd_header,
    odd_bytes,
)  # fmt: skip


def hostile(original: Path, folder: Path, seed: int) -> None:
    choice = random.Random(seed)
    shutil.copytree(original, folder)
    for _ in range(choice.randrange(1, 4)):
        mutation = choice.choice(MUTATIONS)
        try:
            mutation(folder, choice)
        except OSError:
            continue  # the file is something else by now


def look_at(folder: Path) -> ModelFiles | None:
    """What every program does with a folder before it loads it; None if it is refused."""
    spec = ModelSpec(name="hostile", kind="folder", location=str(folder))
    try:
        files = verify(spec, folder)
    except ModelError:
        return None
    make_card(files)
    assert predict(files).weight_bytes >= 0
    return files


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_a_broken_folder_harms_nobody(tmp_path: Path) -> None:
    originals = [
        make_tiny_model(tmp_path / kind, architecture=kind)
        for kind in ("llama", "gemma3_text", "gpt_oss", "qwen3")
    ]
    survivors: list[Path] = []
    for i in range(COUNT):
        folder = tmp_path / f"hostile{i}"
        hostile(originals[i % len(originals)], folder, SEED * 10**6 + i)
        if look_at(folder) is not None:
            survivors.append(folder)
    assert 0 < len(survivors) < COUNT
    chosen = random.Random(SEED).sample(survivors, min(LOADED, len(survivors)))
    with Backend(isolation="process", memory_budget="2GB", stall_timeout=30) as backend:
        neighbour = str(originals[0])
        want = backend.generate(neighbour, "Hello", max_tokens=4).text
        limit_memory(backend)
        stop, wrong = threading.Event(), list[object]()

        def go_on_asking() -> None:
            while not stop.is_set():
                got = backend.generate(neighbour, "Hello", max_tokens=4, timeout=120).text
                if got != want:
                    wrong.append(got)

        asking = threading.Thread(target=go_on_asking)
        asking.start()
        try:
            for folder in chosen:
                ask(backend, folder)
        finally:
            stop.set()
            asking.join()
        assert not wrong
        assert backend.generate(neighbour, "Hello", max_tokens=4).text == want


def ask(backend: Backend, folder: Path) -> None:
    try:
        result = backend.generate(str(folder), "Hello", max_tokens=4, timeout=120)
    except GuardedLLMError:
        pass  # every refusal is one of ours
    else:
        assert result.usage.completion_tokens <= 4
    backend.card(str(folder))
