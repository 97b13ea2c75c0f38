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
# # Quick start
#
# Several models in one process that do not disturb each other, and answers that say where
# they came from.
#
# The models here are small enough to run anywhere, even on a plain CPU: SmolLM2 with 135
# million parameters, in 4 bits and in 16. What they say is often wrong; this page is about the
# machinery around them. On a Mac use larger ones, for instance `"llama-3b"` and
# `"llama-70b"`. `mlx-guarded models` lists the short names, and any folder or Hugging Face
# repository with MLX weights works.

# %%
from mlx_guarded_llm import Backend, GuardedLLM, ProgressBars

SMALL = "smollm2-135m"
LARGE = "smollm2-135m-bf16"

backend = Backend(on_progress=ProgressBars())

# %% [markdown]
# ## An answer
#
# A model is downloaded and loaded when it is first used. A `Result` displays the answer, and
# below it which model gave it and what it waited for.

# %%
result = backend.generate(SMALL, "What is the capital of France?", max_tokens=16)
result

# %%
result.text, result.usage, result.guard.as_asked

# %% [markdown]
# `result.guard` is its provenance: which weights answered (`fingerprint`), with which
# seed, after how many seconds of waiting, loading, prefill and decoding.

# %%
result.guard.as_dict()

# %% [markdown]
# The same as a stream. Leaving the loop early stops the generation.

# %%
for chunk in backend.stream(SMALL, "What is the capital of Japan?", max_tokens=16):
    print(chunk.text, end="", flush=True)

# %% [markdown]
# ## Two models at once
#
# One thing must not happen: that a model is loaded while another one generates. On Metal that
# has killed whole processes. So a load waits for the running answers. If they take longer than
# `load_wait`, they pause between two tokens, the model is loaded, and they go on where they
# stopped. Nothing is lost, and nobody waits for ever.
#
# The default `load_wait` is two minutes; here it is two seconds. The small model is in the
# middle of a long answer when the large one is asked.

# %%
backend.close()
backend = Backend(load_wait=2.0, fairness_window=1.0, on_progress=ProgressBars())

long_answer = backend.stream(
    SMALL, "Tell me a story about a lighthouse.", max_tokens=40, request_id="long-answer"
)
first = next(long_answer)  # it has begun

newcomer = backend.generate(
    LARGE, "What is a butterfly? Answer in one sentence.", max_tokens=32, request_id="newcomer"
)
story = first.text + "".join(chunk.text for chunk in long_answer)
newcomer

# %% [markdown]
# `backend.timeline()` draws what happened. Yellow is the waiting load, blue is the load itself,
# and the hollow red part is the long answer, which stands still meanwhile.

# %%
backend.timeline()

# %% [markdown]
# The same for one request, in words.

# %%
print(backend.explain("newcomer"))

# %%
print(backend.explain("long-answer"))

# %% [markdown]
# Both models are resident now, so the next question to either loads nothing.

# %%
backend.models()

# %% [markdown]
# ## The answer you asked for, or a clear sign that it is not
#
# Sometimes the model cannot answer at all. On a Mac with 32 GB, `"llama-70b"` does not fit.
# Here a memory budget below what the large model needs simulates that. A load that cannot fit
# is refused before a byte is read.
#
# A `GuardedLLM` may then ask other models. It does not pass their answer off as the one
# you wanted:

# %%
from mlx_guarded_llm.errors import FallbackRefused

backend.close()
backend = Backend(memory_budget="200MB", count_others=False, on_progress=ProgressBars())

llm = GuardedLLM(backend, LARGE, fallbacks=[SMALL], max_tokens=16)
try:
    llm.generate("What is the capital of France?")
except FallbackRefused as error:
    print(error)
    refused = error

# %% [markdown]
# The error carries the answer, so that you can look at it and decide.

# %%
refused.answer

# %% [markdown]
# With `on_fallback="mark"` the answer is returned, and marked. Code only has to test
# `guard.as_asked`.

# %%
llm = GuardedLLM(backend, LARGE, fallbacks=[SMALL], on_fallback="mark", max_tokens=16)
marked = llm.generate("What is the capital of France?")
assert not marked.guard.as_asked
marked.guard

# %% [markdown]
# Whatever is built on such an answer is tainted, even if every later step is correct. `taint`
# shows which steps of a chain are. Here the first step is the answer that this page began with.

# %%
from mlx_guarded_llm import taint

checked = backend.generate(SMALL, f"Is this right? {marked.text}", max_tokens=12)
taint([result, marked, checked], rests_on={1: [], 2: [1]})

# %%
backend.close()
