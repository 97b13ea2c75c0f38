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
# # Living in a notebook
#
# Cells are stopped half-way, run again, and run in any order; a kernel lives for days. This page
# shows what becomes of models and memory meanwhile. The model is SmolLM2 with 135 million
# parameters, in 4 bits and in 16.

# %%
import os
import re
import signal
import subprocess
import sys
import threading
import time

from mlx_guarded_llm import Backend, ProgressBars

SMALL = "smollm2-135m"
LARGE = "smollm2-135m-bf16"

backend = Backend(on_progress=ProgressBars())
backend.load(SMALL)
backend.load(LARGE)
backend.models()

# %% [markdown]
# `ProgressBars` draws a bar in the cell for each download, load and long prompt, from half a
# second on. It needs no widgets, and a saved notebook keeps what it drew. `default_backend()`,
# which the adapters use unless they are given one, has it in every notebook.
#
# ## The stop button
#
# The button sends the kernel a signal, and the cell gets a `KeyboardInterrupt`. This page has to
# press it by itself:


# %%
def press_stop(after):
    """Interrupt the cell after some seconds, as the button does."""
    threading.Timer(after, os.kill, [os.getpid(), signal.SIGINT]).start()


def tell_a_story(backend, name):
    story = backend.stream(
        SMALL, "Tell me a long story about a lighthouse.", max_tokens=400, request_id=name
    )
    print(next(story).text, end="")
    press_stop(after=2)
    for chunk in story:
        print(chunk.text, end="", flush=True)


try:
    tell_a_story(backend, "story")
except KeyboardInterrupt:
    print(" ■ stopped")

# %% [markdown]
# Nothing goes on in the background. The answer ended at its next token, its KV cache was freed,
# and the models are still in memory:

# %%
while backend.requests():
    time.sleep(0.01)
print(backend.explain("story"))
backend.models()

# %% [markdown]
# So the cell can be run again at once. `generate` is stopped in the same way:

# %%
press_stop(after=1)
try:
    backend.generate(SMALL, "Tell me a long story about a lighthouse.", max_tokens=400)
except KeyboardInterrupt:
    print("■ stopped")

backend.generate(SMALL, "What is the capital of France?", max_tokens=12)

# %% [markdown]
# ### What it does not reach
#
# The signal reaches the cell that runs, on the kernel's main thread. It does not reach threads
# and tasks that the cell has started: the two answers below go on after their cell has ended,
# and while no cell runs the button does nothing. `requests()` shows them, and `cancel` stops
# them:

# %%
for number in (1, 2):
    threading.Thread(
        target=backend.generate,
        args=[SMALL, "Count to a thousand."],
        kwargs={"max_tokens": 400, "request_id": f"thread-{number}"},
    ).start()
time.sleep(1)
[(request.request_id, request.state) for request in backend.requests()]

# %%
for request in backend.requests():
    backend.cancel(request.request_id)
while backend.requests():
    time.sleep(0.01)
print(backend.explain("thread-1"))

# %% [markdown]
# ## Memory
#
# Models stay in memory until it is needed for another one, or until they are told to go.
# `Backend(keep_alive=600)` unloads those that were idle for ten minutes.

# %%
used, budget = backend.memory()
print(f"{used / 1e6:.0f} MB of {budget / 1e9:.0f} GB")

backend.unload(LARGE)

used, budget = backend.memory()
print(f"{used / 1e6:.0f} MB of {budget / 1e9:.0f} GB")

# %% [markdown]
# The cell that makes the backend may be run twice. The first backend is dropped, and its engine
# is a process, so all that it held goes back to the system. (A backend that you keep in another
# variable lives on, and so does one that a cell ended with: IPython remembers it in `Out`.)

# %%
before = backend.worker_pid
backend = Backend(on_progress=ProgressBars())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


while alive(before):
    time.sleep(0.1)
print("the first engine is gone; the second one answers:")
backend.generate(SMALL, "What is the capital of France?", max_tokens=12)

# %% [markdown]
# The engine also ends with the kernel: when it is restarted, when it is shut down, and when it is
# killed. And if the engine dies, the kernel lives, with all its variables: see
# [The incident](incident.ipynb).

# %%
backend.close()

# %% [markdown]
# ## Several notebooks, one server
#
# Three notebooks with a backend each would load a model three times. A server has it once, for
# all of them, and its guard sees all their requests. `mlx-guarded serve --background` starts one
# that every program of yours finds by itself; here it is a plain one.

# %%
command = [sys.executable, "-m", "mlx_guarded_llm", "serve", "--model", SMALL, "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
url = re.search(r"(http://\S+)/v1", server.stdout.readline())[1]

remote = Backend.connect(url)
remote.generate(SMALL, "What is the capital of Japan?", max_tokens=12)

# %% [markdown]
# It is the same class of object with the same methods, and the stop button reaches to the server:

# %%
try:
    tell_a_story(remote, "remote-story")
except KeyboardInterrupt:
    print(" ■ stopped")

while remote.requests():
    time.sleep(0.01)
print(remote.explain("remote-story"))

# %% [markdown]
# The timeline is the server's: of everybody who asked it. The ring is the answer that was stopped.

# %%
remote.timeline()

# %%
remote.close()
server.terminate()
server.wait()
