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
# # Reasoning chains
#
# A chain of reasoning asks a large model several times, and each step rests on those before. If
# one step is cut off, or comes from another model, the end of the chain looks as good as ever
# and is wrong. This page shows what a chain gets instead: the right answer, or a clear sign that
# it is not.
#
# So that it runs in seconds and says the same everywhere, the page makes its two models itself:
# tiny Llamas with fixed answers. Everything else is real: the engine, its processes, the tokens,
# the limits. On a Mac use `"deepseek-r1-70b"` and `"phi3-mini"`.

# %%
import tempfile
from pathlib import Path

from mlx_guarded_llm import Backend, Catalog, GuardedLLM, RetryPolicy, taint
from mlx_guarded_llm.models import Alias
from mlx_guarded_llm.testing.scripted import make_scripted_model

QUESTION = "A train leaves at 9:40 and arrives at 11:05. How long does it travel?"
STEPS = ["Make a plan.", "Work it out.", "Give the number of minutes."]

folder = Path(tempfile.mkdtemp())
make_scripted_model(
    folder / "reasoner",
    "Count the minutes to 10:00, from there to 11:00, and the rest.",
    later=[
        "<think>To 10:00 it is 20 minutes. To 11:00 it is another 60, so 80. The rest is 5, "
        "so 85. Check: 9:40 and 85 minutes is 9:125, which is 11:05.</think>"
        "20 + 60 + 5 = 85.",
        "85 minutes.",
    ],
    thinking=True,
)
make_scripted_model(
    folder / "small",
    "Subtract the numbers.",
    later=["11.05 - 9.40 = 1.65.", "165 minutes."],
)
models = {name: Alias(model=str(folder / name)) for name in ("reasoner", "small")}
backend = Backend(catalog=Catalog(aliases=models))

# %% [markdown]
# ## The chain


# %%
def chain(llm):
    messages = [{"role": "user", "content": QUESTION}]
    results = []
    for step in STEPS:
        messages.append({"role": "user", "content": step})
        results.append(llm.generate(messages))
        messages.append({"role": "assistant", "content": results[-1].text})
    return results


plan, work, answer = chain(GuardedLLM(backend, "reasoner"))
answer

# %% [markdown]
# The step before it. Thinking is kept apart from the answer, and is folded:

# %%
work

# %% [markdown]
# ## A degraded answer
#
# The thinking of the second step does not fit into 40 tokens. Without a guard, this is what the
# next step gets: nothing, without an error.

# %%
messages = [
    {"role": "user", "content": QUESTION},
    {"role": "user", "content": STEPS[0]},
    {"role": "assistant", "content": plan.text},
    {"role": "user", "content": STEPS[1]},
]
raw = backend.generate("reasoner", messages, max_tokens=40)
raw.text, raw.finish_reason

# %% [markdown]
# A `GuardedLLM` looks at each answer. One that ends inside its thinking is degraded, and is asked
# for again with something changed: here with more tokens, because `max_tokens_cap` allows it. The
# attempts are part of the result.

# %%
growing = RetryPolicy(attempts=3, max_tokens_cap=200)
llm = GuardedLLM(backend, "reasoner", retry=growing, max_tokens=40)
mended = llm.generate(messages)
mended

# %%
mended.text == work.text, mended.guard.as_asked

# %% [markdown]
# If nothing helps, it is an error that carries the best there was. With `on_degraded="mark"` it
# is a result, and marked:

# %%
llm = GuardedLLM(backend, "reasoner", max_tokens=40, on_degraded="mark")
llm.generate(messages)

# %% [markdown]
# ## The wrong answer
#
# Now the model fails. A `FaultyBackend` has its engine die at each call from the second step on,
# as the server of the incident did. The small model is the fallback. This is the chain of the
# incident, which took whatever came:

# %%
from mlx_guarded_llm.errors import EngineDied, FallbackRefused
from mlx_guarded_llm.testing.faulty import FaultyBackend, Options

FINE = Options({})  # no fault: the model's own answer
DIES = EngineDied("the engine was killed (SIGABRT).")


def failing(*faults):
    return FaultyBackend(backend, {"reasoner": faults})


quick = RetryPolicy(attempts=2, initial_wait=0, jitter=0)
naive = GuardedLLM(
    failing(FINE, *[DIES] * 4), "reasoner", fallbacks=["small"], retry=quick, on_fallback="mark"
)
wrong = chain(naive)
print(*(result.text for result in wrong), sep="\n")

# %% [markdown]
# 165 minutes: a good plan, well written steps, and a wrong number. Only the provenance tells.
# The default is therefore to stop at the first such step:

# %%
guarded = GuardedLLM(failing(FINE, DIES, DIES), "reasoner", fallbacks=["small"], retry=quick)
try:
    chain(guarded)
except FallbackRefused as error:
    print(error)
    refused = error

# %%
refused.answer

# %% [markdown]
# ## Hold: the right answer, late
#
# Most failures pass. With `on_fallback="hold"` the fallback's answer is only an insurance: it is
# kept, and the model is asked again until the deadline. Here it dies twice at the second step,
# the small model answers, and then the model is back.

# %%
patient = RetryPolicy(attempts=2, initial_wait=0, jitter=0, deadline=60.0)
holding = GuardedLLM(
    failing(FINE, DIES, DIES, FINE, FINE),
    "reasoner",
    fallbacks=["small"],
    retry=patient,
    on_fallback="hold",
)
held = chain(holding)
held[-1].text

# %% [markdown]
# The second step, with what was tried for it. The answer is the reasoner's own:

# %%
held[1]

# %% [markdown]
# ## What may be used
#
# `taint` goes through a chain and says which steps rest on an answer that was not the one asked
# for. A program can stop there, ask again, or tell its user. The chain of the incident:

# %%
taint(wrong)

# %%
wrong[1].guard

# %% [markdown]
# And the one that held out:

# %%
taint(held)

# %%
backend.close()

# %% [markdown]
# The same with LangChain: `ChatMLXGuarded(model="deepseek-r1-70b", fallbacks=["phi3-mini"],
# on_fallback="hold")`. Its messages carry the provenance in `response_metadata["guard"]`, and
# `taint` reads them: see [Agents](agents.ipynb).
