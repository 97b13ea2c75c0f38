"""One file, the environment over it, flags over both."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.server.settings import Settings, in_force, load_settings
from mlx_guarded_llm.server.settings_file import commented


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "server.toml"
    file.write_text(
        "port = 9000\nheartbeat = 3\n[guard]\nload_wait = 5\nmax_queue = 7\n"
        '[models."org/a"]\nfallbacks = ["b"]\n[models.b]\nretry = { attempts = 1 }\n'
        '[keys.alice]\nkey = "a-secret"\n'
    )
    return file


def test_a_written_file_says_nothing_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(commented())
    assert {origin for _, _, origin in in_force(load_settings(file))} == {"default"}


def test_what_wins_and_where_it_is_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_GUARDED_HEARTBEAT", "4")
    monkeypatch.setenv("MLX_GUARDED_GUARD__LOAD_WAIT", "6")
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", "/elsewhere")  # another part's
    loaded = load_settings(file, {"port": 9100, "models": {"c": {}}})
    settings = loaded.settings
    assert (settings.port, settings.heartbeat, settings.drain) == (9100, 4, 30)
    assert (settings.guard.load_wait, settings.guard.max_queue) == (6, 7)
    assert set(settings.models) == {"org/a", "b", "c"}
    found = {name: (value, origin) for name, value, origin in in_force(loaded)}
    assert found["port"] == (9100, "flag")
    assert found["heartbeat"] == (4.0, "environment")
    assert found["guard.load_wait"] == (6.0, "environment")
    assert found["guard.max_queue"] == (7, str(file))
    assert found["drain"] == (30.0, "default")
    assert found["models.b.retry.attempts"] == (1, str(file))
    assert "a-secret" not in repr(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prt = 1", "prt"),
        ("port = 70000", "port"),
        ("[guard]\nload_wait = -1", "guard.load_wait"),
        ("[models.a]\non_fallback = 'never'", "models.a.on_fallback"),
        ("port = ", "no TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as raised:
        load_settings(file)
    assert said in str(raised.value) and "server.toml" in str(raised.value)


def test_a_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_GUARDED_PORT", "many")
    with pytest.raises(InvalidRequest, match=r"port: .*\(environment\)"):
        load_settings()


def test_the_commented_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(commented())
    assert load_settings(file).settings == Settings()


def test_each_comment_can_be_taken_away(tmp_path: Path) -> None:
    lines = [
        line[2:] if line.startswith("# ") and (" = " in line or line.startswith("# [")) else line
        for line in commented().splitlines()
        if not line.startswith(("# MLX_", "# Settings", "# A table")) and '= ""' not in line
    ]
    file = tmp_path / "server.toml"
    file.write_text("\n".join(lines).replace("[keys.alice]", '[keys.alice]\nkey = "k"'))
    settings = load_settings(file).settings
    assert (
        settings.models["smollm2-135m"]
        == Settings.model_validate({"models": {"x": {}}}).models["x"]
    )
    assert settings.limits == Settings().limits
