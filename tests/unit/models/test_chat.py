from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.models.chat import Chat, read_chat
from mlx_guarded_llm.models.files import UnreadableFile

LLAMA: dict[str, Any] = {"model_type": "llama"}


def write(folder: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def read(folder: Path, config: Mapping[str, Any] = LLAMA, **files: Mapping[str, Any]) -> Chat:
    return read_chat(
        folder,
        config,
        generation=files.get("generation", {}),
        settings=files.get("settings", {}),
    )


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("files", "settings", "template"),
    [
        ({}, None, None),
        ({}, "C", "C"),
        ({}, "", None),
        ({}, NAMED, {"default": "D", "tool_use": "T"}),
        ({}, NAMED[:1], "T"),
        ({}, {"default": "D", "tool_use": "T"}, {"default": "D", "tool_use": "T"}),
        ({"chat_template.jinja": "J"}, "C", "J"),
        ({"chat_template.jinja": "J"}, NAMED, "J"),
        ({"chat_template.jinja": " \n"}, "C", "C"),
        ({"chat_template.json": {"chat_template": "P"}}, None, "P"),
        ({"chat_template.json": {"chat_template": "P"}}, "C", "C"),
        ({"processor_config.json": {"chat_template": "P"}}, None, "P"),
        ({"processor_config.json": {"image_size": 3}}, None, None),
        (
            {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"},
            "C",
            {"default": "J", "tool_use": "T"},
        ),
        (
            {"additional_chat_templates/tool_use.jinja": "T"},
            "C",
            {"default": "C", "tool_use": "T"},
        ),
    ],
)
def test_a_template_is_found_wherever_it_lies(
    tmp_path: Path, files: dict[str, object], settings: object, template: object
) -> None:
    write(tmp_path, files)
    assert read(tmp_path, settings={"chat_template": settings}).template == template


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        ({}, 3),
        ({}, ["C"]),
        ({}, [{"name": "default"}]),
        ({}, {"default": 3}),
        ({}, [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]),
        ({"chat_template.json": {"chat_template": 3}}, None),
        ({"chat_template.json": "{"}, None),
        ({"processor_config.json": "[]"}, None),
    ],
)
def test_a_template_that_is_none(
    tmp_path: Path, files: dict[str, object], settings: object
) -> None:
    write(tmp_path, files)
    with pytest.raises(UnreadableFile, match=str(tmp_path)):
        read(tmp_path, settings={"chat_template": settings})


def test_mlx_lms_own_renderers(tmp_path: Path) -> None:
    assert read(tmp_path).renderer == ""
    assert read(tmp_path, settings={"chat_template_type": "deepseek_v32"}).renderer
    spark = {"model_type": "muse_spark"}
    assert read(tmp_path, spark).renderer == "muse_spark"
    own = read(tmp_path, spark, settings={"chat_template": "C"})
    assert (own.template, own.renderer) == ("C", "")
    with pytest.raises(UnreadableFile, match="chat_template_type"):
        read(tmp_path, settings={"chat_template_type": 3})


@pytest.mark.parametrize(
    ("generation", "config", "text", "tokens"),
    [
        (None, None, None, None),
        (None, 1, None, (1,)),
        (2, [1], None, (2,)),
        ([2, 3], 1, None, (2, 3)),
        ([], 1, None, (1,)),
        (-1, [0], None, (0,)),
        (None, None, [4, 5], (4, 5)),
        (None, 1, [4], (1,)),
    ],
)
def test_end_tokens(
    tmp_path: Path, generation: object, config: object, text: object, tokens: object
) -> None:
    whole: dict[str, Any] = {**LLAMA, "eos_token_id": config}
    if text is not None:
        whole |= {"eos_token_id": config, "text_config": {"eos_token_id": text}}
        if config is None:
            del whole["eos_token_id"]
    assert read(tmp_path, whole, generation={"eos_token_id": generation}).end_tokens == tokens


@pytest.mark.parametrize("eos", ["</s>", [1, None], 1.5, True, {"id": 1}])
@pytest.mark.parametrize("where", ["generation", "config"])
def test_a_senseless_end_token(tmp_path: Path, eos: object, where: str) -> None:
    wrong: dict[str, Any] = {"eos_token_id": eos}
    config = {**LLAMA, **wrong} if where == "config" else LLAMA
    with pytest.raises(UnreadableFile, match="eos_token_id"):
        read(tmp_path, config, generation=wrong if where == "generation" else {})


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("C", encoding="utf-8-sig")
    (tmp_path / "additional_chat_templates").mkdir()
    other = tmp_path / "additional_chat_templates" / "rag.jinja"
    other.write_text("R", encoding="utf-8-sig")
    assert read(tmp_path).template == {"default": "C", "rag": "R"}
