"""Sizes of models on a hub on this machine, which are not downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from mlx_guarded_llm.errors import ModelNotFound, ModelUnsupported, PullFailed
from mlx_guarded_llm.memory.footprint import predict
from mlx_guarded_llm.models import Catalog, verify
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.unit.models.fake_hub import FakeHub
from tests.unit.models.folders import folder_spec


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DEFAULT_ETAG_TIMEOUT", 2)
    monkeypatch.chdir(tmp_path)
    return Catalog(cache_dir=tmp_path / "cache")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "origin", hidden_size=256, layers=4)


@pytest.fixture
def server(origin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({path.name: path.read_bytes() for path in origin.iterdir()}) as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield running


def test_the_footprint_is_that_of_the_whole_model(
    catalog: Catalog, server: FakeHub, origin: Path
) -> None:
    outline = catalog.outline(catalog.resolve("org/repo", kv_bits=8))
    whole = verify(folder_spec(origin, kv_bits=8), origin)
    assert predict(outline) == predict(whole)
    assert outline.context_window == whole.context_window
    assert not outline.path.exists()


def test_only_headers_are_read(catalog: Catalog, server: FakeHub) -> None:
    weights = len(server.files["model.safetensors"])
    assert weights > 5_000_000
    catalog.outline(catalog.resolve("org/repo"))
    assert server.sent < 200_000
    assert "tokenizer.json" not in server.served
    assert catalog.find(catalog.resolve("org/repo")) is None, "nothing is in the hub's cache"


def test_what_is_on_disk_is_not_asked_for(catalog: Catalog, server: FakeHub) -> None:
    spec = catalog.resolve("org/repo")
    files = catalog.ensure(spec)
    server.served.clear()
    server.status = 500
    assert catalog.outline(spec) == files
    assert not server.served


def test_a_draft_is_part_of_it(catalog: Catalog, server: FakeHub, origin: Path) -> None:
    spec = catalog.resolve("org/repo", draft=str(origin))
    outline = catalog.outline(spec)
    assert outline.draft is not None
    assert outline.load_bytes == 2 * catalog.outline(replace(spec, draft=None)).load_bytes


def test_what_the_hub_says_is_a_typed_error(catalog: Catalog, server: FakeHub) -> None:
    spec = catalog.resolve("org/repo")
    server.status, server.code = 403, "GatedRepo"
    with pytest.raises(PullFailed, match="gated"):
        catalog.outline(spec)
    server.status = None
    for name in [name for name in server.files if name.endswith(".safetensors")]:
        del server.files[name]
    with pytest.raises(ModelUnsupported, match="no model"):
        catalog.outline(spec)


def test_a_hub_out_of_reach_is_named(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullFailed, match="hub is out of reach"):
        catalog.outline(catalog.resolve("org/repo"))


def test_no_hub_knows_a_folder_or_a_builtin_model(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(PullFailed, match="is known once it was made") as caught:
        catalog.outline(catalog.resolve("smollm2-135m"))
    assert "mlx-guarded pull smollm2-135m" in caught.value.hint
    with pytest.raises(ModelNotFound, match="no folder"):
        catalog.outline(folder_spec(tmp_path / "nowhere"))
