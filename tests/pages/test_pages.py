"""Every block of Python and every command on the pages is run, or says why not."""

from __future__ import annotations

import ast
import re
import shutil

import pytest

from ._examples import PAGES, ROOT, Example, examples
from .conftest import Page

ALL = [example for path in PAGES for example in examples(path)]


# Those of a page stay together, and in order: to xdist's `loadscope`, what stands before the last
# "::" of a test's id is its scope.
BY_PAGE = [pytest.param(one.page, one, id=f"{one.page}::{one.line}") for one in ALL]


@pytest.mark.filterwarnings("ignore")  # of the libraries that the pages use
@pytest.mark.parametrize(("page", "example"), BY_PAGE, indirect=["page"], scope="module")
def test_an_example(page: Page, example: Example) -> None:
    if example.not_run:
        if example.language == "python":
            compile(example.code, example.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        pytest.skip(example.not_run)
    if "jq" in re.split(r"\W+", example.code) and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    page.run(example)


def test_examples_are_found() -> None:
    assert len([example for example in ALL if not example.not_run]) > 100


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {t for example in ALL for t in re.findall(r"^make ([a-z-]+)", example.code)}
    assert targets and {t for t in targets if f"\n{t}:" not in makefile} == set()


def test_benchmarks_are_there() -> None:
    folder = ROOT / "benchmarks"
    named = {n for example in ALL for n in re.findall(r"-m benchmarks\.(\w+)", example.code)}
    there = {path.stem for path in folder.iterdir()}
    assert named and named <= there
