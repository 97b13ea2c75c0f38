"""Loading tokenizers."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mlx_guarded_llm.engine.output.detokenizer import make_detokenizer
from mlx_guarded_llm.engine.prompt.tokenizer import Tokenizers, load_tokenizer
from mlx_guarded_llm.engine.residency.staging import staged_tokenizer
from mlx_guarded_llm.errors import ModelInvalid
from mlx_guarded_llm.models.spec import ModelFiles
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.engine._backend import wait_until
from tests.engine._tokenizers import byte_level, files, metaspace, plain, sentencepiece


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level(chatml(), folder=tmp_path)
    return tmp_path


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def test_end_of_text_is_what_the_config_and_the_tokenizer_say(folder: Path) -> None:
    own = load_tokenizer(files(folder)).eos_token_id
    change(folder / "config.json", eos_token_id=[1, 2])
    assert load_tokenizer(files(folder)).eos_token_ids == {1, 2, own}
    change(folder / "generation_config.json", eos_token_id=3)
    assert load_tokenizer(files(folder)).eos_token_ids == {3, own}


def test_mlx_lms_defaults_for_a_model_type(folder: Path) -> None:
    change(folder / "config.json", model_type="muse_spark", eos_token_id=None)
    tokenizer = load_tokenizer(files(folder))
    assert tokenizer.response_initial_state == "header"
    assert {200001, 200008} < tokenizer.eos_token_ids


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '"a"', "\udcff"])
def test_damaged_files(folder: Path, name: str, content: str) -> None:
    model = files(folder)
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelInvalid, match="cannot be loaded") as caught:
        load_tokenizer(model)
    assert str(folder) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "change_of_config",
    [
        {"layer_types": ["full_attention"] * 5},
        {"attention_bias": None},
        {"initializer_range": 1},
        {"rope_scaling": "?"},
        {"vocab_size": -5},
    ],
)
def test_a_config_that_transformers_refuses(folder: Path, change_of_config: object) -> None:
    whole = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    change(folder / "config.json", **whole)
    usual = load_tokenizer(files(folder)).encode("Hello")
    change(folder / "config.json", **change_of_config)  # type: ignore[arg-type]  # a dict
    assert load_tokenizer(files(folder)).encode("Hello") == usual


def test_want_of_memory_is_no_fault_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mlx_guarded_llm.engine.prompt.tokenizer.make_detokenizer", nothing_left)
    with pytest.raises(MemoryError):
        load_tokenizer(files(folder))


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelInvalid, match="has no tokenizer"):
        load_tokenizer(files(folder))


def test_code_of_a_model_is_never_run(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: ...\n")
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
    )
    with pytest.raises(ModelInvalid):
        load_tokenizer(files(folder))
    assert not (folder / "ran").exists()


def test_a_tokenizer_is_read_once_and_serves_again(folder: Path) -> None:
    tokenizers, model = Tokenizers(), files(folder)
    first = tokenizers.get("tiny", model)
    assert tokenizers.get("tiny", model) is first
    tokenizers.release("tiny")
    tokenizers.release("tiny")  # of a model that has none: nothing
    assert tokenizers.get("tiny", model) is first


def test_two_models_of_one_folder_never_share_a_tokenizer(folder: Path) -> None:
    tokenizers, model = Tokenizers(), files(folder)
    first = tokenizers.get("tiny", model)
    tokenizers.release("tiny")
    assert tokenizers.get("tiny", model) is first
    assert tokenizers.get("tiny#2", model) is not first


def test_a_tokenizer_whose_files_changed_is_read_anew(folder: Path) -> None:
    tokenizers, model = Tokenizers(), files(folder)
    first = tokenizers.get("tiny", model)
    tokenizers.release("tiny")
    change(folder / "generation_config.json", eos_token_id=3)
    second = tokenizers.get("tiny", files(folder))
    assert second is not first
    assert second.eos_token_ids == {3, first.eos_token_id}


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        ("llama", None),
        ("llama", "LlamaTokenizer"),
        ("llama", "PreTrainedTokenizerFast"),
        ("qwen2", None),
        ("qwen3", "Qwen2Tokenizer"),
        ("gpt2", "GPT2Tokenizer"),
        ("olmo2", "GPT2TokenizerFast"),
        ("mistral", "LlamaTokenizerFast"),
        ("phi3", "LlamaTokenizer"),
        ("deepseek_v3", "LlamaTokenizerFast"),
        ("muse_spark", None),
        (None, "PreTrainedTokenizerFast"),
    ],
)
def test_its_class_is_the_one_that_transformers_chooses(
    folder: Path, model_type: str | None, tokenizer_class: str | None
) -> None:
    change(folder / "config.json", model_type=model_type)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("tokenizer_class", None)
    if tokenizer_class is not None:
        settings["tokenizer_class"] = tokenizer_class
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with staged_tokenizer(files(folder)) as staged:
        theirs = AutoTokenizer.from_pretrained(staged)
    ours = load_tokenizer(files(folder))._tokenizer
    assert type(ours) is type(theirs)
    text = "Hello, I'm  here.\n naïve"
    assert ours.encode(text) == theirs.encode(text)


def test_damaged_files_that_were_mended(folder: Path) -> None:
    tokenizers, model = Tokenizers(), files(folder)
    good = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(ModelInvalid, match="cannot be loaded"):
        tokenizers.get("tiny", model)
    (folder / "tokenizer.json").write_bytes(good)
    assert len(tokenizers.get("tiny", model))


def test_few_are_kept_of_models_that_are_gone(tmp_path: Path) -> None:
    tokenizers = Tokenizers()
    folders = [tmp_path / str(i) for i in range(6)]
    for at in folders:
        at.mkdir()
        byte_level(chatml(), folder=at)
    read = [tokenizers.get(at.name, files(at)) for at in folders]
    for at in folders:
        tokenizers.release(at.name)
    again = [tokenizers.get(at.name, files(at)) for at in reversed(folders)]
    kept = [a is b for a, b in zip(read, reversed(again), strict=True)]
    assert kept == [False, False, True, True, True, True]


def test_who_needs_one_that_is_being_read_waits_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, reads = threading.Barrier(2, timeout=10), []

    def slowly(model: ModelFiles) -> Any:
        reads.append(threading.current_thread().name)
        begun.wait()
        return load_tokenizer(model)

    monkeypatch.setattr("mlx_guarded_llm.engine.prompt.tokenizer.load_tokenizer", slowly)
    tokenizers, model = Tokenizers(), files(folder)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(tokenizers.get, "tiny", model)
        wait_until(lambda: bool(reads))
        second = pool.submit(tokenizers.get, "tiny", model)
        tokenizers.release("another")  # waits for nobody
        begun.wait()
        assert first.result(60) is second.result(60)
    assert len(reads) == 1


def test_an_added_token_whose_id_cannot_be_had(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    token = {**content["added_tokens"][-1], "id": 5000, "content": "<extra>"}
    content["added_tokens"].append(token)
    file.write_text(json.dumps(content))
    with pytest.raises(ModelInvalid, match="<extra> is to have the id 5000"):
        load_tokenizer(files(folder))


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Sequence", "decoders": SENTENCEPIECE},
        {
            "type": "Sequence",
            "decoders": [*SENTENCEPIECE, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False},
        {"type": "Fuse"},
        {"type": "Sequence", "decoders": [BYTES, {"type": "Fuse"}]},
        None,
    ],
)
def test_a_vocabulary_of_bytes_whose_decoder_is_of_another_kind(
    folder: Path, decoder: object
) -> None:
    change(folder / "tokenizer.json", decoder=decoder)
    tokenizer = load_tokenizer(files(folder))
    for text in ("Hello! How can I assist you?", " a\n\tb", "naïve ✓ 你好"):
        detokenizer = make_detokenizer(tokenizer)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert "".join(map(detokenizer.add, ids)) + detokenizer.finish() == text


def test_every_kind_streams_what_it_decodes() -> None:
    for tokenizer in (plain(), sentencepiece(), metaspace()):
        for text in ("Hello, a b", "tab\tnew\n\nline", "é你 x"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            detokenizer = make_detokenizer(tokenizer)
            streamed = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
            assert streamed == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
