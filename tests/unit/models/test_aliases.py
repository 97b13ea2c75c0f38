from __future__ import annotations

from pathlib import Path

import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.models import Alias, Catalog


def _catalog(tmp_path: Path, toml: str) -> Catalog:
    file = tmp_path / "models.toml"
    file.write_text(toml)
    return Catalog(aliases_file=file, cache_dir=tmp_path / "cache")


def test_the_users_file_adds_and_replaces(tmp_path: Path) -> None:
    toml = """
        [mine]
        model = "org/repo"
        revision = "v1"
        kv_bits = 4
        kv_group_size = 32
        context_window = 1000

        [phi3-mini]
        model = "org/other"

        ["phi3:mini-4k"]
        model = "org/other"
    """
    aliases = _catalog(tmp_path, toml).aliases()
    assert aliases["mine"] == Alias(
        model="org/repo",
        revision="v1",
        kv_bits=4,
        kv_group_size=32,
        context_window=1000,
        source=tmp_path / "models.toml",
    )
    assert aliases["phi3-mini"].model == "org/other"
    assert aliases["phi3:mini-4k"].model == "org/other"
    assert aliases["smollm2-135m"].model == "smollm2-135m"


def test_relative_folders_count_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    toml = '[mine]\nmodel = "weights"\nadapter_path = "lora"'
    spec = _catalog(tmp_path, toml).resolve("mine")
    assert (spec.kind, spec.location) == ("folder", str(tmp_path / "weights"))
    assert spec.adapter_path == str(tmp_path / "lora")


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.toml"
    file.write_text('[mine]\nmodel = "org/repo"')
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(file))
    assert Catalog(cache_dir=tmp_path).resolve("mine").location == "org/repo"


def test_the_default_file_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_GUARDED_MODELS_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "phi3-mini" in Catalog(cache_dir=tmp_path).aliases()


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not exist") as caught:
        Catalog(aliases_file=tmp_path / "none.toml")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[mine", "cannot be read"),
        ('mine = "org/repo"', "not a table"),
        ("[mine]", "no model"),
        ("[mine]\nmodel = 3", "no model"),
        ('[mine]\nmodel = ""', "no model"),
        ('[mine]\nmodel = "a/b"\nrevison = "x"', "Did you mean revision"),
        ('[mine]\nmodel = "a/b"\ncolour = "x"', "Known options"),
        ('[mine]\nmodel = "a/b"\nrevision = 3', "non-empty string"),
        ('[mine]\nmodel = "a/b"\nadapter_path = ""', "a folder"),
        ('[mine]\nmodel = "a/b"\nkv_bits = 3', "2, 4, 8 or None"),
        ('[mine]\nmodel = "a/b"\nkv_bits = true', "2, 4, 8 or None"),
        ('[mine]\nmodel = "a/b"\nkv_group_size = 65', "32, 64 or 128"),
        ('[mine]\nmodel = "a/b"\ndraft = 3', "the name of a model, or 'prompt'"),
        ('[mine]\nmodel = "a/b"\ncontext_window = 0', "an integer, 1 to"),
        ('[mine]\nmodel = "a/b"\ncontext_window = 1.5', "an integer, 1 to"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        _catalog(tmp_path, toml)
    assert "models.toml" in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Catalog(aliases_file=file)
