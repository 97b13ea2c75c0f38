"""What somebody does with Open WebUI, click by click."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import ANSWER, ROME, Stand

pytestmark = pytest.mark.timeout(600)


def provider(stand: Stand, name: str) -> None:
    """Say of which kind the server is."""
    page = stand.page
    stand.settings("Connections")
    page.get_by_role("button", name="Configure").first.click()
    page.get_by_role("button", name="Advanced").click()
    page.locator("#provider-select").select_option(name)
    page.get_by_role("button", name="Save").last.click()
    page.get_by_text("OpenAI API settings updated").wait_for()


def shows(locator: Any, text: str) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(text)


def test_its_models_are_listed(stand: Stand) -> None:
    stand.page.goto(stand.webui)
    stand.page.locator("#model-selector-model-button").click()
    for name in ("paris", "rome", "small", "thinker"):
        stand.page.get_by_role("option", name=f"Select {name} model").wait_for()
    stand.shot("models")


@pytest.mark.parametrize("kind", ["", "llama.cpp"])
def test_a_chat(stand: Stand, kind: str) -> None:
    provider(stand, kind)
    stand.chat("paris", "What is the capital of France?")
    shows(stand.answer(), ANSWER)
    stand.shot(f"chat {kind}")


def test_thinking_is_no_answer(stand: Stand) -> None:
    stand.chat("thinker", "What is the capital of France?")
    shows(stand.answer(), "It is Paris.")
    stand.shot("thinking")
    shows(stand.answer(), "Thought")


def test_the_stop_button_frees_the_place(stand: Stand) -> None:
    provider(stand, "llama.cpp")
    stand.chat("rome", "Go on")
    shows(stand.answer(), ROME + ROME)  # which is there before the end, for there is none
    assert stand.running() > 0
    stand.shot("streaming")
    stand.page.get_by_role("button", name="Stop").click()
    stand.until(lambda: stand.running() == 0)
    stand.shot("stopped")
    # The answer goes on where it stopped.
    before = len(stand.answer().inner_text())
    stand.page.get_by_role("button", name="Continue Response").click()
    stand.until(lambda: len(stand.answer().inner_text()) > before + 100)
    stand.shot("continued")
    assert "error" not in stand.answer().inner_text().lower()
    stand.page.get_by_role("button", name="Stop").click()
    stand.until(lambda: stand.running() == 0)


def manage(stand: Stand) -> Any:
    """The row of the model paris in the administrator's dialog."""
    page = stand.page
    stand.settings("Models")
    page.get_by_role("button", name="Actions", exact=True).click()
    page.get_by_role("menu").get_by_text("Manage", exact=True).click()
    row = page.locator("div.border-b", has=page.get_by_role("button", name="Delete Model"))
    return row.filter(has_text="paris").last


def state(stand: Stand, model: str) -> str:
    """What the server says of one model."""
    return str(stand.server.get(f"/v1/models/{model}").json()["status"]["value"])


def loaded(stand: Stand) -> dict[str, bool]:
    """What Open WebUI makes of the list of models."""
    models = stand.page.request.get(f"{stand.webui}/openai/models").json()["data"]
    return {model["id"]: model["loaded"] for model in models}


def test_loading_and_unloading(stand: Stand) -> None:
    provider(stand, "llama.cpp")
    page = stand.page
    stand.server.post("/models/unload", json={"model": "paris"})
    row = manage(stand)
    row.get_by_text("unloaded", exact=True).wait_for()
    row.get_by_role("button", name="Load Model", exact=True).click()
    page.get_by_text("Model loaded successfully").wait_for()
    stand.shot("loading")
    stand.until(lambda: state(stand, "paris") == "loaded")
    row = manage(stand)
    row.get_by_text("loaded", exact=True).wait_for()
    assert loaded(stand)["paris"] and not loaded(stand)["small"]
    stand.shot("loaded")
    row.get_by_role("button", name="Unload Model").click()
    page.get_by_text("Model unloaded successfully").wait_for()
    row.get_by_text("unloaded", exact=True).wait_for()
    stand.shot("unloaded")
    assert not loaded(stand)["paris"]


def test_what_the_dialog_offers_and_the_server_does_not(stand: Stand) -> None:
    provider(stand, "llama.cpp")
    page = stand.page
    row = manage(stand)
    page.get_by_placeholder("Type a model ref").fill("llama-99")
    page.keyboard.press("Enter")
    page.get_by_text("neither downloaded nor deleted").wait_for()
    stand.shot("download")
    page.get_by_text("neither downloaded nor deleted").wait_for(state="hidden")
    row.get_by_role("button", name="Delete Model").click()
    page.get_by_role("button", name="Confirm").click()
    page.get_by_text("neither downloaded nor deleted").wait_for()
    stand.shot("delete")


def test_a_fallback_is_refused_in_words(stand: Stand) -> None:
    stand.chat("small", "What is the capital of France?")
    shows(stand.answer(), "paris")
    stand.shot("refused")


def test_an_unknown_model_is_told_in_words(stand: Stand) -> None:
    page = stand.page
    stand.settings("Connections")
    page.get_by_role("button", name="Configure").first.click()
    page.get_by_role("button", name="Advanced").click()
    page.locator("#add-model-id-input").fill("nobody")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("button", name="Save").last.click()
    page.get_by_text("OpenAI API settings updated").wait_for()
    stand.chat("nobody", "What is the capital of France?")
    shows(stand.answer(), "there is no model 'nobody' here")
    stand.shot("unknown")
