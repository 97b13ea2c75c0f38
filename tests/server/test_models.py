"""Only what is configured, or lies below a root, is served, and by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve


def test_what_is_served(paris: Running) -> None:
    (model,) = paris.client.get("/v1/models").json()["data"]
    assert model["id"] == "paris"
    assert model["object"] == "model"
    assert isinstance(model["created"], int) and isinstance(model["owned_by"], str)
    assert model["context_length"] == 2048
    assert model["size"] > 10_000
    assert model["state"] == "unloaded"
    paris.backend.load("paris")
    shown = paris.client.get("/v1/models/paris").json()
    assert shown["state"] == "resident" and shown["memory"] > 0


def test_an_unknown_name_lists_the_known_ones(paris: Running) -> None:
    reply = paris.client.get("/v1/models/gpt-4o")
    assert reply.status_code == 404
    error = reply.json()["error"]
    assert error["code"] == "model_not_found"
    assert "paris" in error["message"] and error["param"] == "model"


def test_a_path_is_no_name(paris: Running, scripted: MakeModel) -> None:
    for name in (scripted(ANSWER), "paris[kv_bits=8]", "smollm2-135m"):
        assert paris.client.get(f"/v1/models/{name}").status_code == 404


def test_aliases_mean_what_they_are_mapped_to(serve: Serve, scripted: MakeModel) -> None:
    running = serve(
        models={
            "paris": {"model": scripted(ANSWER), "aliases": ["gpt-4o", "claude-*"]},
            "other": scripted("Other."),
        }
    )
    for name in ("gpt-4o", "claude-opus-5", "paris"):
        assert running.client.get(f"/v1/models/{name}").json()["id"] == "paris"
    assert running.client.get("/v1/models/gpt-4").status_code == 404


def test_the_models_below_a_root(serve: Serve, scripted: MakeModel, tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    shutil.copytree(scripted(ANSWER), root / "org" / "paris")
    shutil.copytree(scripted(ANSWER), secret)
    (root / "out").symlink_to(secret)
    running = serve(models={}, models_roots=[root])
    names = [model["id"] for model in running.client.get("/v1/models").json()["data"]]
    assert names == ["org/paris"]
    assert running.client.get("/v1/models/org/paris").json()["context_length"] == 2048


def test_models_are_loaded_at_the_start(serve: Serve, scripted: MakeModel) -> None:
    running = serve(
        models={
            "first": {"model": scripted(ANSWER), "preload": True},
            "second": {"model": scripted("Other."), "pin": True},
            "third": scripted("Third."),
        }
    )

    def state(name: str) -> tuple[str, bool]:
        shown = running.client.get(f"/v1/models/{name}").json()
        return shown["state"], shown["pinned"]

    until(lambda: state("first") == ("resident", False))
    until(lambda: state("second") == ("resident", True))
    assert state("third") == ("unloaded", False)


def test_two_names_of_one_model_share_its_state(serve: Serve, scripted: MakeModel) -> None:
    folder = scripted(ANSWER)
    running = serve(
        models={
            "first": folder,
            "second": folder,
            "narrow": {"model": folder, "context_window": 64},
        }
    )
    running.backend.load("second")

    def states() -> dict[str, str]:
        listed = running.client.get("/v1/models").json()["data"]
        return {model["id"]: model["status"]["value"] for model in listed}

    assert states() == {"first": "loaded", "second": "loaded", "narrow": "unloaded"}
    shown = running.client.get("/v1/models/first").json()
    assert shown["memory"] == running.backend.models()[0].memory_bytes
    page = running.client.get("/", headers={"accept": "text/html"}).text
    assert "is second" in page and "is first" not in page, "its memory is counted once"
    running.client.post("/models/unload", json={"model": "first"})
    assert set(states().values()) == {"unloaded"}
