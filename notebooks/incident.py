# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The incident
#
# A server kept several MLX models in one process. While one of them was answering, another
# request asked for a second one, whose load began on another thread. The process died:
#
#     -[_MTLCommandBuffer addCompletedHandler:]:1011: failed assertion
#     'Completed handler provided after commit call'
#
# This page plays the scene three times: without a guard, with it, and with a death that no guard
# can prevent. The models are SmolLM2 with 135 million parameters, in 4 bits and in 16; the
# records below are of real runs. On a Mac use `"llama-70b"` and `"phi3-mini"`.

# %%
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from mlx_guarded_llm import Backend, ProgressBars
from mlx_guarded_llm.record import overlaps, read_perfetto, timeline

SMALL = "smollm2-135m"
LARGE = "smollm2-135m-bf16"

# %% [markdown]
# ## Without a guard
#
# It dies, so it runs in a process of its own: a server of forty lines with two threads, as the
# one in the incident. Where MLX survives an overlap, on a CPU for instance, a *witness* aborts
# the process as Metal does. It looks for one thing only: a load that begins while a generation
# is unfinished.

# %%
trace = Path(tempfile.mkdtemp()) / "naive.json"
demo = [sys.executable, "-m", "mlx_guarded_llm", "demo", "--naive"]
server = subprocess.run(
    [*demo, "--max-tokens", "36", "--trace", trace],
    env={**os.environ, "COLUMNS": "1000"},
    capture_output=True,
    text=True,
    check=False,
)
for line in server.stdout.splitlines():
    if "assertion" in line or "died" in line:
        print(line)

# %% [markdown]
# What it wrote down until then. The red line is the death, the crosses are what was lost: the
# answer and the load.

# %%
timeline(read_perfetto(trace))

# %% [markdown]
# ## With the guard
#
# The same scene: the first answer has a third of its tokens when the other model is asked. The
# witness watches this engine, too.
#
# The load waits for the answer, here for two seconds at most (the default is two minutes). Then
# the answer pauses between two tokens, the model is loaded, and both go on.

# %%
os.environ["MLX_GUARDED_WITNESS"] = "1"
backend = Backend(load_wait=2.0, fairness_window=1.0, on_progress=ProgressBars())

first = backend.stream(SMALL, "Why is the sky blue?", max_tokens=36, request_id="answer-A")
text = "".join(chunk.text for chunk in islice(first, 12))
with ThreadPoolExecutor() as threads:
    second = threads.submit(
        backend.generate, LARGE, "Name two planets.", max_tokens=12, request_id="answer-B"
    )
    text += "".join(chunk.text for chunk in first)

print("A:", text)
print("B:", second.result().text)

# %%
backend.timeline()

# %% [markdown]
# Who waited for whom, in words:

# %%
print(backend.explain("answer-B"))

# %% [markdown]
# No load ran beside a generation. The record says so, and so does the witness: it has seen all
# MLX work of the engine, and the engine lives.


# %%
def seen():
    from mlx_guarded_llm.engine.observer import process_observer

    return dict(process_observer().seen)


print("overlaps:", overlaps(backend.timeline()))
print("the witness saw:", backend.run(seen))

# %% [markdown]
# ## When an engine dies anyway
#
# A driver can fail, and memory can run out. The engine has a process of its own, so your kernel
# and its variables survive. Here the process is killed in the middle of an answer, as systems do
# when memory runs out.

# %%
question = {"prompt": "What is rain? Answer in one sentence.", "max_tokens": 24}
undisturbed = backend.generate(SMALL, **question, temperature=0)

stream = backend.stream(SMALL, **question, temperature=0, request_id="survivor")
text = "".join(chunk.text for chunk in islice(stream, 8))
os.kill(backend.worker_pid, signal.SIGKILL)
for chunk in stream:
    text += chunk.text

print(text)
print("resumed:", chunk.guard.resumed, "· the same answer:", text == undisturbed.text)

# %% [markdown]
# The caller saw a pause. A new engine went on after the last token that had been passed on.

# %%
print(backend.explain("survivor"))

# %%
asked = next(event.time for event in backend.events() if event.request_id == "survivor")
timeline(backend.events(), since=asked - 1)

# %%
backend.close()

# %% [markdown]
# The incident had a second half. A chain of reasoning stood in front of that server; it went on
# with the answer of another model, and nobody noticed. That is the subject of
# [Reasoning chains](reasoning.ipynb).
