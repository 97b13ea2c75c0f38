"""Loading tokenizers."""

import json
from pathlib import Path

import pytest

from mlx_guarded_llm.engine.tokenizer import load_tokenizer
from mlx_guarded_llm.errors import ModelInvalid
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.engine._tokenizers import byte_level, files


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


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '"a"', "\udcff"])
def test_damaged_files(folder: Path, name: str, content: str) -> None:
    model = files(folder)
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelInvalid, match="cannot be loaded") as caught:
        load_tokenizer(model)
    assert str(folder) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("eos", ["</s>", [1, None], 1.5, True])
def test_a_senseless_end_of_text(folder: Path, eos: object) -> None:
    change(folder / "config.json", eos_token_id=eos)
    with pytest.raises(ModelInvalid, match="eos_token_id"):
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
