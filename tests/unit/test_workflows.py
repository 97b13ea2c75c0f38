"""The workflows for GitHub's runners call targets that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes without types

ROOT = Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_every_target_exists(file: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load(file.read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    called = re.findall(r'\bmake "?([a-z$-]+[A-Z]*)', "\n".join(commands))
    assert called
    for target in called:
        if target.endswith("$VERSIONS"):
            (matrix,) = (job["strategy"]["matrix"] for job in workflow["jobs"].values()
                         if "strategy" in job)  # fmt: skip
            assert {f"test-{version}" for version in matrix["versions"]} <= TARGETS
        else:
            assert target in TARGETS


def test_one_job_runs_the_suite_on_metal() -> None:
    (file,) = WORKFLOWS
    job = yaml.safe_load(file.read_text())["jobs"]["metal"]
    assert job["runs-on"].startswith("macos")
    assert {"run": "make test"} in job["steps"]
