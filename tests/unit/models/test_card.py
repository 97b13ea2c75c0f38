from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Catalog, ModelCard
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.models import ModelFiles
from mlx_guarded_llm.models import catalog as catalog_module
from mlx_guarded_llm.models.card import make_card
from mlx_guarded_llm.models.chat import DEEPSEEK_CALLS, DSML_CALLS, SEED_CALLS
from mlx_guarded_llm.testing.tiny import make_tiny_embedder, make_tiny_model


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(cache_dir=tmp_path / "cache")


def card_of(catalog: Catalog, folder: Path) -> ModelCard:
    card = catalog.card(str(folder))
    assert card is not None
    return card


def test_a_chat_model(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", context_window=512)
    card = card_of(catalog, folder)
    assert card == ModelCard(
        name=str(folder),
        task="generate",
        architecture="llama",
        context_window=512,
        max_output=None,
        chat=True,
        tools=True,
        native_tools=False,
        thinking=False,
        fingerprint=catalog.ensure(catalog.resolve(str(folder))).fingerprint,
        revision="",
        weight_bytes=catalog.ensure(catalog.resolve(str(folder))).weight_bytes,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tools": True}, {"native_tools": True, "thinking": False}),
        ({"thinking": True}, {"native_tools": False, "thinking": True}),
        ({"chat_template": None}, {"chat": False, "tools": False, "thinking": False}),
    ],
)
def test_what_it_can_do(
    catalog: Catalog, tmp_path: Path, options: dict[str, Any], expected: dict[str, bool]
) -> None:
    card = card_of(catalog, make_tiny_model(tmp_path / "m", **options))
    assert {name: getattr(card, name) for name in expected} == expected


@pytest.mark.parametrize("marker", [DEEPSEEK_CALLS, *DSML_CALLS, SEED_CALLS])
def test_formats_that_mlx_lm_does_not_know(catalog: Catalog, tmp_path: Path, marker: str) -> None:
    template = "{{ tools }}{{ messages }}" + marker
    assert card_of(catalog, make_tiny_model(tmp_path / "m", chat_template=template)).native_tools
    unseen = make_tiny_model(tmp_path / "unseen", chat_template=f"{{{{ messages }}}}{marker}")
    assert not card_of(catalog, unseen).native_tools


def test_thinking_that_mlx_lm_does_not_know(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    entry, first = tokenizer["added_tokens"][0], len(tokenizer["model"]["vocab"]) + 3
    for i, marker in enumerate(("[THINK]", "[/THINK]")):
        assert not card_of(catalog, folder).thinking
        tokenizer["added_tokens"].append({**entry, "content": marker, "id": first + i})
        file.write_text(json.dumps(tokenizer))
    assert card_of(catalog, folder).thinking
    words = make_tiny_model(tmp_path / "words", chat_template="{{ messages }}<think>")
    assert card_of(catalog, words).thinking


def test_an_embedding_model(catalog: Catalog, tmp_path: Path) -> None:
    card = card_of(catalog, make_tiny_embedder(tmp_path / "m", context_window=48))
    assert (card.task, card.architecture, card.context_window) == ("embed", "bert", 48)
    assert not (card.chat or card.tools or card.thinking)


@pytest.mark.parametrize("name", ["smollm2-135m", "nobody-has-this", "org/repo", "./nowhere"])
def test_none_of_what_is_not_on_disk(catalog: Catalog, name: str) -> None:
    assert catalog.card(name) is None


def test_none_of_what_is_broken(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"x")
    assert catalog.card(str(folder)) is None


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_that_is_none(catalog: Catalog, name: Any) -> None:
    with pytest.raises(InvalidRequest):
        catalog.card(name)


def test_it_is_made_once_until_a_file_changes(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ModelFiles] = []

    def make(files: ModelFiles) -> ModelCard:
        made.append(files)
        return make_card(files)

    monkeypatch.setattr(catalog_module, "make_card", make)
    folder = make_tiny_model(tmp_path / "m", chat_template=None)
    assert not card_of(catalog, folder).chat
    assert not card_of(catalog, folder).chat
    assert len(made) == 1
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert card_of(catalog, folder).chat
    (folder / "chat_template.jinja").write_text("{{ messages }} {{ tools }}")
    os.utime(folder / "chat_template.jinja", ns=(1, 1))
    card_of(catalog, folder)
    assert len(made) == 3


def test_the_default_of_several_templates(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", chat_template=None)
    config = folder / "tokenizer_config.json"
    templates = '[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]'
    config.write_text(config.read_text().rstrip().rstrip("}") + f', "chat_template": {templates}}}')
    assert card_of(catalog, folder).chat
