"""Names with options: what is written is read again, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.backend.names import Names
from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound
from mlx_guarded_llm.models.naming import model_name, split_options, with_options
from mlx_guarded_llm.testing.tiny import make_tiny_model

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "revision": TEXTS,
        "adapter_path": TEXTS,
        "kv_bits": st.sampled_from([2, 4, 8]),
        "kv_group_size": st.sampled_from([32, 64, 128]),
        "context_window": st.integers(1, 10**9),
    },
)


@given(name=TEXTS, options=OPTIONS)
def test_what_is_written_is_read(name: str, options: dict[str, Any]) -> None:
    full = with_options(name, options)
    if options or split_options(name) is None:
        assert (split_options(full) or (full, {})) == (name, options)


def test_options_are_put_behind_those_it_has(catalog: Catalog) -> None:
    name = with_options("org/m[kv_bits=8]", {"context_window": 64, "revision": None})
    assert name == "org/m[kv_bits=8][context_window=64]"
    assert with_options("m", {"revision": None}) == "m"
    assert split_options("m[]") == ("m", {})
    spec = catalog.resolve(name)
    assert (spec.name, spec.full_name) == ("org/m", "org/m[context_window=64,kv_bits=8]")
    assert catalog.resolve("org/m[kv_bits=8][kv_bits=4]", kv_group_size=32).kv_bits == 4
    assert catalog.resolve("org/m[kv_bits=8][]") == catalog.resolve("org/m", kv_bits=8)


def test_the_shown_name_has_one_bracket(catalog: Catalog, tmp_path: Path) -> None:
    folder = str(make_tiny_model(tmp_path / "m[kv_bits=8]"))
    given: list[tuple[str, dict[str, Any], str]] = [
        ("org/m", {}, "org/m"),
        ("org/m", {"kv_bits": None}, "org/m"),
        ("org/m", {"kv_bits": 4}, "org/m[kv_bits=4]"),
        ("org/m[kv_bits=8]", {"kv_bits": 4}, "org/m[kv_bits=4]"),
        ("org/m[kv_bits=8][kv_bits=4]", {}, "org/m[kv_bits=4]"),
        ("org/m[kv_bits=8][context_window=9]", {}, "org/m[context_window=9,kv_bits=8]"),
        ("org/m[revision=a,kv_bits=8]", {}, "org/m[kv_bits=8,revision=a]"),
        ("org/m[]", {}, "org/m[]"),
        ("org/m[][]", {"kv_bits": None}, "org/m[]"),
        ("org/m[]", {"kv_bits": 4}, "org/m[kv_bits=4]"),
        ("MINE[kv_bits=8]", {}, "Mine[kv_bits=8]"),
        ("no such", {}, "no such"),
        (folder, {}, folder),
        (folder, {"kv_bits": 4}, f"{folder}[kv_bits=4]"),
        (f"{folder}[kv_bits=4]", {"kv_bits": 2}, f"{folder}[kv_bits=2]"),
    ]
    for name, options, full in given:
        assert catalog.full_name(name, **options) == full
        assert catalog.full_name(full) == full
        if "/" in name:
            assert catalog.resolve(full) == catalog.resolve(name, **options)


@given(options=OPTIONS, more=OPTIONS)
def test_what_stands_beside_the_name_wins(options: dict[str, Any], more: dict[str, Any]) -> None:
    name = with_options("org/m", options)
    full = Catalog().full_name(name, **more)
    assert full == with_options("org/m", {**options, **more})
    assert full == Catalog().full_name(with_options(name, more))


@pytest.mark.parametrize("name", ["m[0]", "m[kv_bit=8]", "m[kv_bits]", "[kv_bits=8]", "m]", "m"])
def test_other_brackets_are_part_of_the_name(name: str) -> None:
    assert split_options(name) is None


@pytest.mark.parametrize("name", [None, 3, "", " ", "a\0b", "x" * 5000, b"bytes"])
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="non-empty string"):
        model_name(name)


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "models.toml"
    file.write_text(
        '[Mine]\nmodel = "org/repo"\nkv_bits = 8\n[mine2]\nmodel = "org/b"\n'
        '[pinned]\nmodel = "org/c"\nrevision = "v1"'
    )
    return Catalog(aliases_file=file, cache_dir=tmp_path / "cache")


def test_the_full_name_has_what_the_catalog_has_not(catalog: Catalog) -> None:
    for options, full, differing in (
        ({}, "Mine", None),
        ({"kv_bits": 8}, "Mine", ()),
        ({"kv_bits": None}, "Mine", None),
        ({"kv_bits": 4}, "Mine[kv_bits=4]", (("kv_bits", 4),)),
        ({"kv_bits": 8, "revision": "v1"}, "Mine[revision=v1]", (("revision", "v1"),)),
    ):
        spec = catalog.resolve("Mine", **options)
        assert (spec.full_name, spec.given) == (full, differing)
        assert catalog.resolve(spec.full_name) == spec
    assert catalog.resolve("Mine[kv_bits=4]", kv_bits=2).kv_bits == 2
    assert catalog.resolve("mine2", kv_group_size=32) == catalog.resolve("mine2")


def test_case_and_paths(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.resolve("mINE").name == "Mine"
    assert catalog.resolve("SmolLM2-135M").name == "smollm2-135m"
    assert catalog.resolve("MINE[kv_bits=2]").full_name == "Mine[kv_bits=2]"
    make_tiny_model(tmp_path / "MINE")
    assert catalog.resolve("MINE").kind == "folder", "a folder is not taken for an alias"
    assert catalog.resolve(tmp_path / "MINE").location == str(tmp_path / "MINE")


@pytest.mark.parametrize("called", ["m[1]", "m[kv_bits=8]", "m[]", "m[kv_bits=8][kv_bits=4]"])
def test_a_folder_with_brackets_is_a_folder(catalog: Catalog, tmp_path: Path, called: str) -> None:
    folder = make_tiny_model(tmp_path / called)
    for name in (folder, str(folder), f"./{called}"):
        spec = catalog.resolve(name)
        assert (spec.kind, spec.location, spec.kv_bits) == ("folder", str(folder), None)
    for spec in (
        catalog.resolve(folder, kv_bits=2, context_window=64),
        catalog.resolve(with_options(str(folder), {"kv_bits": 2, "context_window": 64})),
        catalog.resolve(f"{folder}[kv_bits=4,context_window=64]", kv_bits=2),
    ):
        assert (spec.location, spec.kv_bits, spec.context_window) == (str(folder), 2, 64)
        assert catalog.resolve(spec.full_name) == spec


def test_an_alias_with_brackets_is_an_alias(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('["m[kv_bits=8]"]\nmodel = "org/repo"\nkv_bits = 4')
    catalog = Catalog(aliases_file=file, cache_dir=tmp_path / "cache")
    assert catalog.resolve("m[kv_bits=8]").kv_bits == 4
    assert catalog.full_name("m[kv_bits=8]") == "m[kv_bits=8]"
    assert catalog.full_name("m[kv_bits=8]", kv_bits=2) == "m[kv_bits=8][kv_bits=2]"
    spec = catalog.resolve("m[kv_bits=8]", context_window=64)
    assert (spec.location, spec.kv_bits, spec.context_window) == ("org/repo", 4, 64)
    assert catalog.resolve(spec.full_name) == spec


def test_two_folders_of_which_one_is_called_as_the_other_with_options(
    catalog: Catalog, tmp_path: Path
) -> None:
    plain, other = make_tiny_model(tmp_path / "m"), make_tiny_model(tmp_path / "m[kv_bits=8]")
    names = Names(catalog)
    spec = names.resolve(plain, kv_bits=8)
    key = names.key(spec)
    assert names.resolve(key) == spec and key != str(other)
    assert names.resolve(str(other)).location == str(other)
    assert names.key(names.resolve(other)) == str(other)


def test_the_main_revision_is_what_no_revision_means(catalog: Catalog) -> None:
    plain = catalog.resolve("org/m")
    for spec in (
        catalog.resolve("org/m", revision="main"),
        catalog.resolve("org/m[revision=main]"),
    ):
        assert spec == plain and spec.full_name == "org/m"
    pinned = catalog.resolve("pinned")
    assert pinned.revision == "v1"
    back = catalog.resolve("pinned", revision="main")
    assert (back.revision, back.full_name) == (None, "pinned[revision=main]")
    assert catalog.resolve(back.full_name) == back


def test_a_wrong_option_in_brackets(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match=r"name\[kv_bits=8\]"):
        catalog.resolve("Mine[kv_bit=8]")
    with pytest.raises(InvalidRequest, match="kv_bits is 3"):
        catalog.resolve("Mine[kv_bits=3]")
