"""One model, its folder written in many ways: the same answer, or a refusal by name."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.residency import loading
from mlx_guarded_llm.errors import InvalidRequest, LoadFailed, ModelInvalid, ModelUnsupported
from mlx_guarded_llm.models import ModelSpec, verify
from mlx_guarded_llm.testing.tiny import make_tiny_model

PROMPT = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 3}]
ARCHITECTURES = ("llama", "qwen3", "phi3", "gemma2", "gemma3_text")
THETA = 500.0


def change(folder: Path, name: str = "config.json", /, **values: Any) -> dict[str, Any]:
    """Set values of a JSON file, or take out those that are None; return what it was."""
    file = folder / name
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    after = {k: v for k, v in {**before, **values}.items() if v is not None}
    file.write_text(json.dumps(after))
    return before


# ---- how a folder may be written: each function rewrites a folder in place -------------


def newer_rope(folder: Path) -> None:
    rope = {"rope_theta": THETA, "rope_type": "default"}
    change(folder, rope_theta=None, rope_parameters=rope)


def rope_in_both_places(folder: Path) -> None:
    change(folder, rope_parameters={"rope_theta": THETA})


def rope_in_its_scaling(folder: Path) -> None:
    change(folder, rope_theta=None, rope_scaling={"rope_type": "default", "rope_theta": THETA})


def rope_of_each_layer(folder: Path) -> None:
    local = change(folder).get("rope_local_base_freq", THETA)
    layers = {
        "full_attention": {"rope_theta": THETA, "rope_type": "default"},
        "sliding_attention": {"rope_theta": local, "rope_type": "default"},
    }
    change(folder, rope_theta=None, rope_local_base_freq=None, rope_parameters=layers)


def shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    where: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "mlx"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def shards_and_another_model(folder: Path) -> None:
    shards(folder)
    other = make_tiny_model(folder / "other", architecture="llama", seed=99)
    (other / "model.safetensors").rename(folder / "model.safetensors")
    shutil.rmtree(other)


def other_names(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "weights[1]*.safetensors")
    index = {"weight_map": dict.fromkeys(names, "weights[1]*.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    text = file.read_text()
    file.unlink()
    return text


def template_in_the_settings(folder: Path) -> None:
    change(folder, "tokenizer_config.json", chat_template=_template(folder))


def template_by_name(folder: Path) -> None:
    named = [
        {"name": "rag", "template": "{{ raise_exception('not this one') }}"},
        {"name": "default", "template": _template(folder)},
    ]
    change(folder, "tokenizer_config.json", chat_template=named)


def template_of_a_processor(folder: Path) -> None:
    change(folder, "chat_template.json", chat_template=_template(folder))


def template_in_a_processor_config(folder: Path) -> None:
    change(folder, "processor_config.json", chat_template=_template(folder))


def template_over_an_older_one(folder: Path) -> None:
    change(folder, "tokenizer_config.json", chat_template="an older one")


def end_in_the_generation_config(folder: Path) -> None:
    end = change(folder).get("eos_token_id")
    change(folder, "generation_config.json", eos_token_id=end if isinstance(end, list) else [end])
    change(folder, eos_token_id=None)


def a_config_that_transformers_refuses(folder: Path) -> None:
    change(folder, initializer_range=1, attention_bias=change(folder).get("attention_bias", False))


def extra_files(folder: Path) -> None:
    (folder / "README.md").write_text("# Hello")
    (folder / "adapters.safetensors").write_bytes(b"")
    (folder / "training_args.bin").write_bytes(b"\0")


def nothing(folder: Path) -> None:
    """Leave it as it is."""


TRAITS: tuple[tuple[Callable[[Path], None], ...], ...] = (
    (nothing, newer_rope, rope_in_both_places, rope_in_its_scaling, rope_of_each_layer),
    (nothing, shards, shards_and_another_model, other_names),
    (
        nothing,
        template_in_the_settings,
        template_by_name,
        template_of_a_processor,
        template_in_a_processor_config,
        template_over_an_older_one,
    ),
    (nothing, end_in_the_generation_config),
    (nothing, a_config_that_transformers_refuses, extra_files),
)
PLACES = ("m", "m [1]", "m*", "m?x", "ä b")


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(isolation="thread") as backend:
        yield backend


def answer(backend: Backend, folder: Path) -> tuple[str, int]:
    result = backend.generate(str(folder), PROMPT, max_tokens=12, temperature=0.0)
    assert backend.card(str(folder)).chat  # type: ignore[union-attr]  # it is on disk
    backend.unload(str(folder))
    return result.text, result.usage.prompt_tokens


def check_folder(backend: Backend, top: Path, architecture: str, choice: random.Random) -> None:
    original = make_tiny_model(top / "original", architecture=architecture, seed=3)
    change(original, rope_theta=THETA)
    want = answer(backend, original)
    folder = top / choice.choice(PLACES)
    shutil.copytree(original, folder)
    traits = [choice.choice(kinds) for kinds in TRAITS]
    for trait in traits:
        trait(folder)
    told = [folder.name, *(trait.__name__ for trait in traits)]
    try:
        got = answer(backend, folder)
    except (ModelInvalid, ModelUnsupported):
        if rope_of_each_layer in traits:  # which not every architecture can be told
            return
        raise
    assert got == want, (architecture, told)


@pytest.mark.parametrize("seed", range(30))
def test_the_same_model_gives_the_same_answer(backend: Backend, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    check_folder(backend, tmp_path, ARCHITECTURES[seed % len(ARCHITECTURES)], choice)


def test_other_settings_give_another_answer(backend: Backend, tmp_path: Path) -> None:
    """The answers above would differ if the settings were not read."""
    folder = make_tiny_model(tmp_path / "m", seed=3)
    change(folder, rope_theta=THETA)
    usual = answer(backend, folder)
    change(folder, rope_theta=10000.0)
    assert answer(backend, folder) != usual


def test_a_folder_whose_name_is_a_pattern_has_its_own_weights(
    backend: Backend, tmp_path: Path
) -> None:
    first = make_tiny_model(tmp_path / "m[1]", seed=1)
    other = make_tiny_model(tmp_path / "m1", seed=2)
    assert answer(backend, first) != answer(backend, other)
    shutil.copytree(first, tmp_path / "plain")
    assert answer(backend, tmp_path / "plain") == answer(backend, first)


def test_tokens_without_an_embedding(backend: Backend, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m")
    rows = 258  # one less than the tokenizer has tokens
    weights = load_file(folder / "model.safetensors")
    cut = {name: w[:rows] if w.shape[0] == 320 else w for name, w in weights.items()}
    save_file(cut, folder / "model.safetensors", metadata={"format": "mlx"})
    change(folder, vocab_size=rows)
    for prompt, raw in (("a<|im_end|>b", True), ("a<|im_end|>b", False), (PROMPT, False)):
        with pytest.raises(InvalidRequest, match="0 to 257"):
            backend.generate(str(folder), prompt, raw=raw, max_tokens=2)
    assert backend.generate(str(folder), "a b", raw=True, max_tokens=2).usage.prompt_tokens == 3


@pytest.mark.parametrize("when", ["before the load", "while it loads"])
def test_weights_that_change_after_they_were_checked(tmp_path: Path, when: str) -> None:
    folder = make_tiny_model(tmp_path / "m")
    other = make_tiny_model(tmp_path / "other", seed=9) / "model.safetensors"
    files = verify(ModelSpec(name="m", kind="folder", location=str(folder)), folder)

    def write(*_: object) -> None:
        shutil.copyfile(other, folder / "model.safetensors")

    if when == "before the load":
        write()
    progress: Callable[[int, int], None] = write if when == "while it loads" else lambda *_: None
    with pytest.raises(LoadFailed, match="was written to after it had been checked"):
        loading.load(files, slice_bytes=2**20, progress=progress, stop=lambda: False)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I32", "BOOL"])
@pytest.mark.parametrize("part", ["mlp.up_proj", "embed_tokens", "lm_head", "input_layernorm"])
def test_whole_numbers_are_no_weights(
    backend: Backend, tmp_path: Path, dtype: str, part: str
) -> None:
    folder = make_tiny_model(tmp_path / "m")
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if part in name)
    header[name]["dtype"] = dtype
    start, end = header[name]["data_offsets"]
    if dtype != "I32":
        header[name]["data_offsets"] = [start, start + (end - start) // 4]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(ModelUnsupported, match=rf"{part} are whole numbers"):
        backend.load(str(folder))
