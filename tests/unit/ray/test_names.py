"""What names mean to a cluster is what they mean to one backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx_guarded_ray.gathering import models
from mlx_guarded_ray.names import ClusterNames, Meant

from mlx_guarded_llm.backend import ModelInfo
from mlx_guarded_llm.models import Catalog, Progress
from mlx_guarded_llm.models.aliases import Alias
from mlx_guarded_llm.results import Provenance


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """One folder by two names."""
    alias = Alias(model=str(tmp_path))
    return Catalog(aliases={"alpha": alias, "beta": alias}, cache_dir=tmp_path / "cache")


@pytest.fixture
def names(catalog: Catalog) -> ClusterNames:
    return ClusterNames(catalog)


def meant(names: ClusterNames, model: str, call: str = "generate", **options: Any) -> Meant:
    found = names.meant(call, {"model": model, "options": options})
    assert found is not None
    return found


def info(catalog: Catalog, name: str, **fields: Any) -> ModelInfo:
    """As a replica tells of a model."""
    known: dict[str, Any] = {
        "name": name,
        "state": "resident",
        "pinned": False,
        "active": 0,
        "waiting": 0,
        "memory_bytes": 100,
        "context_window": 64,
        "fingerprint": "f",
        "idle_seconds": 1.0,
        "identity": catalog.resolve(name).identity,
    }
    return ModelInfo(**(known | fields))


def test_two_names_of_one_folder_are_one_model(names: ClusterNames) -> None:
    alpha, beta = meant(names, "alpha"), meant(names, "beta")
    assert alpha.spec.identity == beta.spec.identity
    assert (alpha.requested, beta.requested) == ("alpha", "beta")
    assert names.shown(alpha.spec) == names.shown(beta.spec) == "alpha"
    other = meant(names, "beta", kv_bits=8)
    assert other.spec.identity != alpha.spec.identity
    assert other.spec.identity == meant(names, "alpha[kv_bits=8]").spec.identity


def test_replicas_get_full_names(names: ClusterNames) -> None:
    asked = meant(names, "alpha", kv_bits=8, temperature=0.5, adapter_path=None)
    assert asked.requested == "alpha[kv_bits=8]"
    assert asked.fields == {"model": "alpha[kv_bits=8]", "options": {"temperature": 0.5}}
    assert meant(names, "ALPHA").fields == {"model": "alpha", "options": {}}


def test_a_load_with_options_says_what_a_name_means(names: ClusterNames) -> None:
    load = meant(names, "alpha", "load", kv_bits=8)
    assert meant(names, "alpha").fields["model"] == "alpha", "it is not loaded yet"
    names.loaded(load)
    asked = meant(names, "alpha")
    assert asked.fields["model"] == "alpha[kv_bits=8]"
    assert (asked.requested, names.shown(asked.spec)) == ("alpha", "alpha")
    assert meant(names, "alpha", context_window=32).fields["model"] == "alpha[context_window=32]"
    plain = meant(names, "alpha[]")
    assert (plain.fields["model"], names.shown(plain.spec)) == ("alpha", "alpha[]")
    assert meant(names, "beta").fields["model"] == "beta", "the other name keeps its meaning"

    told = Provenance(request_id="r", requested_model="alpha[kv_bits=8]", served_model="beta[]")
    guard = names.guard(told, asked)
    assert (guard.requested_model, guard.served_model) == ("alpha", "alpha")

    unload = meant(names, "alpha", "unload")
    assert unload.fields["model"] == "alpha[kv_bits=8]"
    names.unloads(unload)
    assert meant(names, "alpha").fields["model"] == "alpha"


def test_a_load_without_options_says_nothing(names: ClusterNames) -> None:
    for load in (meant(names, "alpha[kv_bits=8]", "load"), meant(names, "alpha", "load")):
        names.loaded(load)
    assert meant(names, "alpha").fields["model"] == "alpha"


def test_what_is_not_known_here_is_left_to_replicas(names: ClusterNames) -> None:
    for body in (
        {"model": "no-such-model", "options": {}},
        {"model": "alpha", "options": {"kv_bits": 3.5}},
        {},
    ):
        assert names.meant("generate", body) is None


def test_a_model_has_one_name_whatever_replicas_call_it(
    names: ClusterNames, catalog: Catalog
) -> None:
    loading = info(catalog, "beta", state="loading", pinned=True)
    (found,) = models({"r1": [info(catalog, "alpha", active=1)], "r2": [loading]})
    assert (found.state, found.active, found.memory_bytes, found.pinned) == ("resident", 1, 200, 1)
    assert found.places == ["r1 (resident)", "r2 (loading, pinned)"]
    assert names.info(found).name == "alpha"
    names.loaded(meant(names, "beta", "load", kv_bits=8))
    eight = models({"r1": [info(catalog, "alpha[kv_bits=8]")], "r2": [loading]})
    shown = {one.name: one for one in map(names.info, eight)}
    assert set(shown) == {"beta", "alpha"}
    assert shown["beta"].replicas["r1"].name == "beta"
    for name, one in shown.items():
        assert meant(names, name).spec.identity == one.identity, "each name means that one"


def test_a_name_that_only_the_replica_knows_stays(names: ClusterNames, catalog: Catalog) -> None:
    strange = replace(info(catalog, "alpha"), name="elsewhere#2", identity="x")
    assert names.info(strange) == strange


def test_progress_is_of_one_model(names: ClusterNames, catalog: Catalog) -> None:
    assert names.shown(meant(names, "alpha").spec) == "alpha"
    progress = Progress("load", 1, 2, model="beta")
    identity = catalog.resolve("alpha").identity
    assert names.progress(progress) == (Progress("load", 1, 2, model="alpha"), identity)
