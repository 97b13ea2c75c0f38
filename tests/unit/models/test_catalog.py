from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.errors import (
    InvalidRequest,
    ModelInvalid,
    ModelNotFound,
    ModelUnsupported,
    PullFailed,
)
from mlx_guarded_llm.models import Alias, Catalog, ModelFiles, builtin, hub, locks
from mlx_guarded_llm.models.catalog import is_folder
from mlx_guarded_llm.testing.tiny import make_tiny_embedder, make_tiny_model
from tests.unit.models.folders import make_folder


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.delenv("MLX_GUARDED_MODELS_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Catalog(cache_dir=tmp_path / "cache")


# ---- resolve -------------------------------------------------------------------


def test_an_alias_then_a_folder_then_a_repository(catalog: Catalog, tmp_path: Path) -> None:
    make_folder(tmp_path / "org" / "here")
    assert catalog.resolve("phi3-mini").location == "mlx-community/Phi-3-mini-4k-instruct-4bit"
    assert catalog.resolve("smollm2-135m").kind == "builtin"
    assert catalog.resolve("org/here").location == str(tmp_path / "org" / "here")
    assert catalog.resolve("~/org/here").location == str(tmp_path / "org" / "here")
    assert catalog.resolve("org/elsewhere").kind == "hub"
    assert catalog.resolve("org/elsewhere").location == "org/elsewhere"


def test_options_override_the_alias(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[mine]\nmodel = "org/repo"\nkv_bits = 4\nrevision = "a"')
    spec = Catalog(aliases_file=file).resolve("mine", revision="b", kv_bits=None)
    assert (spec.name, spec.revision, spec.kv_bits) == ("mine", "b", 4), "None says nothing"


def test_the_task_is_what_the_model_is_for_unless_somebody_says(
    catalog: Catalog, tmp_path: Path
) -> None:
    make_tiny_embedder(tmp_path / "vectors")
    make_tiny_model(tmp_path / "both", architecture="qwen3")
    tasks = {
        name: catalog.resolve(name).task
        for name in ("all-minilm-l6-v2", "smollm2-135m", "./vectors", "./both", "org/elsewhere")
    }
    assert list(tasks.values()) == ["embed", "generate", "embed", "generate", "generate"]
    assert catalog.resolve("./both", task="embed").task == "embed"
    assert catalog.resolve("./vectors", task="generate").task == "generate"
    file = tmp_path / "models.toml"
    file.write_text('[mine]\nmodel = "org/repo"\ntask = "embed"')
    assert Catalog(aliases_file=file).resolve("mine").task == "embed"


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("org/x", {"task": "sing"}, InvalidRequest, "task is 'sing'"),
        ("org/x", {"task": "embed", "kv_bits": 4}, InvalidRequest, "kv_bits"),
        ("org/x", {"task": "embed", "adapter_path": "a"}, InvalidRequest, "adapter_path"),
        ("all-minilm-l6-v2", {"task": "generate"}, ModelUnsupported, "cannot generate"),
        ("smollm2-135m", {"task": "embed"}, ModelUnsupported, "no embedding model"),
    ],
)
def test_a_task_that_makes_no_sense(
    catalog: Catalog, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        catalog.resolve(name, **options)


def test_an_unknown_name_is_an_error_with_close_matches(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve("phi3:mini-4k")
    assert "phi3-mini" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "/no/such/folder",
        "./none",
        "a/b/c",
        "../x",
        "a/..",
        "-a/b",
        "org/repo--x",
        "a/b\n",
    ],
)
def test_names_that_mean_nothing(catalog: Catalog, name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve(name)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "x" * 5000, None, 3, b"x"])
def test_names_that_are_none(catalog: Catalog, name: Any) -> None:
    with pytest.raises(InvalidRequest):
        catalog.resolve(name)


def test_a_very_long_file_name_is_no_crash(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound):
        catalog.resolve("x" * 4000)


@given(name=st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_a_spec_or_a_typed_error(catalog: Catalog, name: str) -> None:
    try:
        catalog.resolve(name)
    except (InvalidRequest, ModelNotFound, ModelUnsupported):
        pass


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "\ud800", "a/\ud800"])
def test_odd_names(catalog: Catalog, name: str) -> None:
    with pytest.raises(ModelNotFound):
        catalog.resolve(name)


def test_a_file_is_told_what_to_do(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelUnsupported, match="import_gguf"):
        catalog.resolve(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "options",
    [{"colour": 1}, {"kv_bits": 3}, {"kv_group_size": 1}, {"context_window": -1}, {"revision": 7}],
)
def test_wrong_options(catalog: Catalog, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        catalog.resolve("org/repo", **options)


def test_only_repositories_have_revisions(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="revision"):
        catalog.resolve("smollm2-135m", revision="main")


# ---- folders --------------------------------------------------------------------


def test_a_folder_is_verified_and_never_fetched(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    spec = catalog.resolve(str(folder))
    assert catalog.ensure(spec).path == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelInvalid):
        catalog.ensure(spec)
    with pytest.raises(ModelInvalid):
        catalog.find(spec)


def test_a_folder_that_went_away_is_not_found(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    spec = catalog.resolve(str(folder))
    folder.rename(tmp_path / "gone")
    assert catalog.find(spec) is None
    with pytest.raises(ModelNotFound):
        catalog.ensure(spec)


def test_where_the_working_folder_is_gone(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goner = tmp_path / "goner"
    goner.mkdir()
    monkeypatch.chdir(goner)
    goner.rmdir()
    assert catalog.resolve("org/repo").kind == "hub"
    assert catalog.resolve("smollm2-135m").kind == "builtin"
    assert not is_folder("org/repo[kv_bits=8]")
    for name in ("./org/repo", "x"):
        with pytest.raises(InvalidRequest, match="working folder has been removed"):
            catalog.resolve(name)


def test_a_users_folder_is_never_removed(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="your own"):
        catalog.remove(str(folder))
    assert (folder / "config.json").is_file()


# ---- what is fetched ---------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Embedded models are made by hand; the list tells how often."""
    calls: list[str] = []

    def make(name: str, cache_dir: Path, *, progress: Any = None) -> Path:
        calls.append(name)
        time.sleep(0.1)
        return make_folder(builtin.folder(name, cache_dir))

    monkeypatch.setattr(builtin, "make", make)
    return calls


def test_what_is_missing_is_fetched_once(catalog: Catalog, made: list[str]) -> None:
    spec = catalog.resolve("smollm2-135m")
    assert catalog.find(spec) is None
    first = catalog.ensure(spec)
    assert catalog.ensure(spec) == first == catalog.find(spec)
    assert made == ["smollm2-135m"]


def test_concurrent_threads_fetch_once(catalog: Catalog, made: list[str]) -> None:
    spec = catalog.resolve("smollm2-135m")
    found: list[ModelFiles] = []
    threads = [
        threading.Thread(target=lambda: found.append(catalog.ensure(spec))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert made == ["smollm2-135m"]


PROCESS = """
import sys, time
from pathlib import Path
from mlx_guarded_llm.models import builtin
from mlx_guarded_llm.models import Catalog
from tests.unit.models.folders import make_folder

def make(name, cache_dir, *, progress=None):
    with open(cache_dir / "calls", "a") as file:
        file.write(name + "\\n")
    time.sleep(0.3)
    return make_folder(builtin.folder(name, cache_dir))

builtin.make = make
catalog = Catalog(cache_dir=Path(sys.argv[1]))
print(catalog.ensure(catalog.resolve("smollm2-135m")).fingerprint)
"""


def test_concurrent_processes_fetch_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in running}
    assert len(outputs) == 1
    assert outputs != {""}
    assert (tmp_path / "calls").read_text().splitlines() == ["smollm2-135m"]


def test_a_broken_builtin_model_is_made_again(catalog: Catalog, made: list[str]) -> None:
    spec = catalog.resolve("smollm2-135m")
    files = catalog.ensure(spec)
    (files.path / "model.safetensors").unlink()
    assert catalog.find(spec) is None
    catalog.ensure(spec)
    assert len(made) == 2


def test_offline_fetches_nothing(catalog: Catalog, made: list[str]) -> None:
    with pytest.raises(PullFailed, match="offline") as caught:
        catalog.ensure(catalog.resolve("smollm2-135m"), offline=True)
    assert caught.value.hint
    assert made == []


def test_offline_says_what_is_broken(catalog: Catalog, made: list[str]) -> None:
    spec = catalog.resolve("smollm2-135m")
    (catalog.ensure(spec).path / "model.safetensors").unlink()
    with pytest.raises(ModelInvalid, match="no model"):
        catalog.ensure(spec, offline=True)


def test_the_wait_for_another_fetch_is_bounded(
    catalog: Catalog, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_WAIT", 0.05)
    with (
        locks.fetch_lock(catalog.cache_dir, "builtin:smollm2-135m@None", "x"),
        pytest.raises(PullFailed, match="locked by another fetch"),
    ):
        catalog.ensure(catalog.resolve("smollm2-135m"))


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, made: list[str]) -> None:
    (tmp_path / "file").touch()
    catalog = Catalog(cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(PullFailed, match="cannot be locked"):
        catalog.ensure(catalog.resolve("smollm2-135m"))


def test_a_half_fetched_repository_is_fetched_again(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = make_folder(tmp_path / "snapshot")
    (snapshot / "model.safetensors").rename(tmp_path / "weights")
    monkeypatch.setattr(hub, "cached", lambda repository, revision: snapshot)

    def fetch(repository: str, revision: str | None, *, progress: Any = None) -> Path:
        (tmp_path / "weights").rename(snapshot / "model.safetensors")
        return snapshot

    monkeypatch.setattr(hub, "fetch", fetch)
    spec = catalog.resolve("org/repo")
    assert catalog.find(spec) is None
    assert catalog.ensure(spec).path == snapshot


def test_what_a_progress_callback_raises_ends_the_call(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, cache_dir: Path, *, progress: Any = None) -> Path:
        progress("anything")
        raise AssertionError("not reached")

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "make", make)
    with pytest.raises(KeyboardInterrupt):
        catalog.ensure(catalog.resolve("smollm2-135m"), progress=stop)
    monkeypatch.setattr(locks, "LOCK_WAIT", 0.05)
    with locks.fetch_lock(catalog.cache_dir, "builtin:smollm2-135m@None", "x"):
        pass  # the lock was given back


def test_models_on_disk_are_listed_and_removed(
    catalog: Catalog, made: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repositories = [
        ("mlx-community/Phi-3-mini-4k-instruct-4bit", tmp_path / "snapshot", 7),
        ("somebody/else", tmp_path, 8),
    ]
    monkeypatch.setattr(hub, "on_disk", lambda: repositories)
    catalog.ensure(catalog.resolve("smollm2-135m"))
    listed = {model.name: model for model in catalog.on_disk()}
    assert set(listed) == {"phi3-mini", "smollm2-135m"}
    assert listed["phi3-mini"].size_bytes == 7
    size = listed["smollm2-135m"].size_bytes
    assert catalog.remove("smollm2-135m") == size > 0
    assert catalog.remove("smollm2-135m") == 0
    assert catalog.find(catalog.resolve("smollm2-135m")) is None


def test_aliases_of_the_caller_replace_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[a]\nmodel = "org/file"\n[b]\nmodel = "org/file"\n')
    catalog = Catalog(aliases_file=file, aliases={"a": Alias(model="org/caller", kv_bits=8)})
    assert catalog.resolve("a").location == "org/caller"
    assert catalog.resolve("a").kv_bits == 8
    assert catalog.resolve("b").location == "org/file"


class TestDrafts:
    def test_its_name_may_have_options(self, catalog: Catalog, tmp_path: Path) -> None:
        make_folder(tmp_path / "large")
        make_folder(tmp_path / "small")
        spec = catalog.resolve("./large", draft="./small[context_window=64,kv_bits=4]")
        assert catalog.resolve(spec.full_name) == spec
        draft = catalog.draft_of(spec)
        assert draft is not None
        assert (draft.location, draft.kv_bits) == (str(tmp_path / "small"), None)
        assert draft.context_window == 64

    def test_a_folder_is_the_same_from_everywhere(self, catalog: Catalog, tmp_path: Path) -> None:
        make_folder(tmp_path / "small")
        spec = catalog.resolve("org/large", draft="small")
        assert spec.draft == str(tmp_path / "small")
        assert catalog.resolve("org/large", draft=Path("small")) == spec

    def test_the_prompt_is_no_model(self, catalog: Catalog, tmp_path: Path) -> None:
        make_folder(tmp_path / "large")
        make_folder(tmp_path / "prompt")
        spec = catalog.resolve("./large", draft="prompt")
        assert catalog.draft_of(spec) is None and catalog.ensure(spec).draft is None
        assert catalog.draft_of(catalog.resolve("./large", draft="./prompt")) is not None

    def test_models_that_draft_for_each_other(self, catalog: Catalog, tmp_path: Path) -> None:
        folder = make_folder(tmp_path / "model")
        file = tmp_path / "models.toml"
        file.write_text(
            f'[a]\nmodel = "{folder}"\ndraft = "b"\n[b]\nmodel = "{folder}"\ndraft = "a"'
        )
        catalog = Catalog(aliases_file=file)
        files = catalog.ensure(catalog.resolve("a"))
        assert files.draft is not None and files.draft.draft is None
        assert files.draft.spec.draft is None

    def test_both_are_on_disk_or_neither(self, catalog: Catalog, tmp_path: Path) -> None:
        make_folder(tmp_path / "large", fill=1)
        make_folder(tmp_path / "small", fill=2)
        alone = catalog.ensure(catalog.resolve("./large"))
        both = catalog.find(catalog.resolve("./large", draft="./small"))
        assert both is not None and both.draft is not None
        assert both.load_bytes == both.weight_bytes + both.draft.weight_bytes
        assert both.fingerprint == alone.fingerprint != both.load_fingerprint
        absent = catalog.resolve("./large", draft="org/elsewhere")
        assert catalog.find(absent) is None
        with pytest.raises(PullFailed, match="org/elsewhere"):
            catalog.ensure(absent, offline=True)
