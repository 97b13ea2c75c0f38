"""An agent, a RAG and a notebook at one server, where one of two models fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from mlx_guarded_llm import Backend
from mlx_guarded_llm.record import Event
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.conftest import MakeBackend, MakeModel

from .test_command import environment, start, where  # noqa: F401

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ROUNDS = 3
CALL = '<tool_call>\n{"name": "inhabitants", "arguments": {"city": "Lyon"}}\n</tool_call>'
FOUND = "There are 520,000 of them."
SAID = "Twelve euros."
# The agent's model says what it found only if the prompt shows the tool's true result.
READS_THE_RESULT = chatml(tools=True) + (
    "{%- if messages[-1].role == 'tool' and '520,000' in messages[-1].content %}"
    "{{- '</tool_call>' }}{%- endif %}"
)

# Each asks when it is told to, and then tells what it got and what the record says.
PROGRAM = """
import json, sys
from mlx_guarded_llm import as_backend, default_backend
{imports}
print("ready", flush=True)
sys.stdin.readline()
answers, ids = [], []
for _ in range({rounds}):
{ask}
print("asked", flush=True)
sys.stdin.readline()
backend = default_backend()
seen = list(backend.timeline().histories.requests)
stories = [backend.explain(name) for name in ids]
print(json.dumps(dict(answers=answers, ids=ids, seen=seen, stories=stories)))
backend.close()
"""
AGENT = PROGRAM.format(
    rounds=ROUNDS,
    imports="""
from agent_loop import ask
from langchain_mlx_guarded import ChatMLXGuarded
chat = ChatMLXGuarded(model="caller", max_tokens=100)
""",
    ask="""
    state = ask(chat, "And in Lyon?")
    answers.append(state["messages"][-1].content)
    ids += [guard["request_id"] for guard in state["guard"]]
""",
)
RAG = PROGRAM.format(
    rounds=ROUNDS,
    imports="""
from rag_llama_index import FACTS, ask
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import MLXGuarded
llm = MLXGuarded(model="teller", max_tokens=100)
vectors = MLXGuardedEmbedding(model_name="words")
""",
    ask="""
    response, watched = ask(llm, vectors, FACTS, FACTS[1])
    answers.append(str(response) + response.source_nodes[0].text)
    ids += [guard.request_id for guard in watched.guards]
""",
)
CELLS = (
    """
from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import default_backend
from mlx_guarded_llm.errors import GuardedLLMError
caller = ChatMLXGuarded(model="caller", max_tokens=100)
teller = ChatMLXGuarded(model="teller", max_tokens=100)
""",
    f"""
answers = []
for _ in range({ROUNDS}):
    answers += [caller.invoke("Hello").content, teller.invoke("Hello").content]
print(answers)
""",
    "default_backend().timeline()",
)


@pytest.fixture
def budget(make_backend: MakeBackend, models: dict[str, str]) -> int:
    """Bytes for one of the two models, the embedder and a request, but not for both models."""
    backend: Backend = make_backend(isolation="thread", prefix_cache=0)
    for model in models.values():
        backend.load(model)
    size = backend.memory()[0]
    backend.close()  # or it would hold what the server needs
    return size - 100_000


@pytest.fixture
def models(scripted: MakeModel, embedder: MakeModel) -> dict[str, str]:
    return {
        "caller": scripted(CALL + FOUND, tools=True, chat_template=READS_THE_RESULT),
        "teller": scripted(SAID),
        "words": embedder(),
    }


@pytest.fixture
def server(
    start: Any,  # noqa: F811
    tmp_path: Path,
    models: dict[str, str],
    budget: int,
) -> str:
    lines = ["[guard]", f"memory_budget = {budget}", "prefix_cache = 0", "fairness_window = 0.2"]
    for name, folder in models.items():
        lines += [f"[models.{name}]", f"model = {json.dumps(folder)}"]
    config = tmp_path / "server.toml"
    config.write_text("\n".join(lines))
    return where(start("--config", str(config)))


@pytest.fixture
def programs(
    server: str,
    environment: dict[str, str],  # noqa: F811
) -> Iterator[list[subprocess.Popen[str]]]:
    environment |= {"MLX_GUARDED_URL": server, "PYTHONPATH": str(EXAMPLES)}
    made = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for code in (AGENT, RAG)
    ]
    yield made
    for program in made:
        program.kill()
        program.communicate()


def hear(program: subprocess.Popen[str], word: str) -> None:
    assert program.stdout is not None
    assert program.stdout.readline().strip() == word


def tell(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()


def check_loads(events: Sequence[Event]) -> set[str]:
    """One load at a time, one copy of each model, never both. Returns what was evicted."""
    loading, resident, evicted = "", set[str](), set[str]()
    for event in events:
        if event.kind == "load.started":
            assert not loading and event.model not in resident
            loading = str(event.model)
            resident -= {*event.details.get("evict", ())}
            evicted |= {*event.details.get("evict", ())}
        elif event.kind == "load.finished":
            assert loading == event.model
            resident.add(loading)
            loading = ""
            assert not {"caller", "teller"} <= resident
        assert not event.kind.endswith("failed"), event
    return evicted


@pytest.mark.timeout(300)
def test_three_programs_share_what_fits(
    server: str,
    environment: dict[str, str],  # noqa: F811
    programs: list[subprocess.Popen[str]],
) -> None:
    # nbformat's functions have no types.
    cells = [nbformat.v4.new_code_cell(code) for code in CELLS]  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, timeout=250, kernel_name="python3")
    with client.setup_kernel(env={**os.environ, **environment}):
        client.execute_cell(cells[0], 0)
        for program in programs:
            hear(program, "ready")
        for program in programs:
            tell(program)
        client.execute_cell(cells[1], 1)
        for program in programs:
            hear(program, "asked")
        client.execute_cell(cells[2], 2)
    agent, rag = (json.loads(program.communicate("\n", timeout=200)[0]) for program in programs)
    assert agent["answers"] == [FOUND] * ROUNDS
    assert [answer.startswith(SAID) for answer in rag["answers"]] == [True] * ROUNDS
    written = cells[1].outputs[0].text
    assert written.count(SAID) == written.count(FOUND) == ROUNDS

    with Backend.connect(server) as backend:
        assert check_loads(backend.events()) >= {"caller", "teller"}
        names = [info.name for info in backend.models()]
        assert len(names) == len(set(names)) and {"words"} < {*names}
    for told in (agent, rag):  # each sees what the others did, and why it waited
        assert {*agent["ids"], *rag["ids"]} <= {*told["seen"]}
    assert any("evicted to make room" in story for story in agent["stories"] + rag["stories"])
    drawn = cells[2].outputs[0].data["text/html"]
    svg = b64decode(drawn.partition("svg+xml;base64,")[2].partition('"')[0]).decode()
    assert "<svg" in svg and all(name in svg for name in ("caller", "teller", "words"))
