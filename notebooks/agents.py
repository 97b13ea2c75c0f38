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
# # Agents over several local models
#
# A planner on a large model, a worker with tools on a small one, and a writer on a third. Each
# step says where its answer came from. Then the planner's model fails, and we see what happens
# to the chain.
#
# To run anywhere, this page uses three versions of SmolLM2 with 135 million parameters: in 16
# bits, in 4, and in 4 with a KV cache of 8 bits. All answers below are real. Models this small
# need help to plan and to call tools: the plan is held to a schema, and the worker is forced to
# call its tool. On a Mac use `"llama-70b"`, `"qwen3-4b"` and `"gemma3-4b"`, and leave that out.

# %%
from IPython.display import display
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend, ProgressBars, Provenance, taint

LARGE = "smollm2-135m-bf16"
SMALL = "smollm2-135m"
WRITER = "smollm2-135m[kv_bits=8]"

backend = Backend(on_progress=ProgressBars())

# %% [markdown]
# ## The planner
#
# `with_structured_output` holds the answer to a schema, token by token, so it is always a
# `Plan`.


# %%
class Plan(BaseModel):
    city: str
    question: str


def make_planner(backend=backend, **options):
    chat = ChatMLXGuarded(model=LARGE, backend=backend, max_tokens=40, **options)
    return chat.with_structured_output(Plan, include_raw=True)


QUESTION = "I am going to Oslo tomorrow. What should I pack?"
ASK = HumanMessage(f'{QUESTION}\n\nAnswer in JSON: the "city", and the "question".')

make_planner().invoke([ASK])["parsed"]

# %% [markdown]
# ## The worker
#
# A LangChain agent with a tool. The middleware forces the small model to call it, and what the
# tool returns is the worker's result.


# %%
@tool(return_direct=True)
def weather(city: str) -> str:
    """The weather in a city."""
    reports = {"Oslo": "rain, 9 °C", "Rome": "sun, 27 °C"}  # a real one would ask a service
    return f"Weather in {city} tomorrow: {reports.get(city, 'unknown')}."


@wrap_model_call
def one_call(request, handler):
    settings = {"parallel_tool_calls": False}
    return handler(request.override(tool_choice="any", model_settings=settings))


worker = create_agent(
    ChatMLXGuarded(model=SMALL, backend=backend, max_tokens=32),
    tools=[weather],
    middleware=[one_call],
)

# %% [markdown]
# ## The chain
#
# Planner, worker, writer. All messages are kept, in order.


# %%
def chain(planner):
    planned = planner.invoke([ASK])
    plan = planned["parsed"]
    task = HumanMessage(f"What is the weather in {plan.city}?")
    worked = worker.invoke({"messages": [task]})["messages"]
    brief = HumanMessage(f"{worked[-1].content}\n\n{plan.question} Answer in one sentence.")
    writer = ChatMLXGuarded(model=WRITER, backend=backend, max_tokens=24)
    return [ASK, planned["raw"], *worked, brief, writer.invoke([brief])]


def show(messages):
    for number, message in enumerate(messages):
        calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
        print(f"{number}. {message.type}:", *message.content.split(), *calls)
        if guard := message.response_metadata.get("guard"):
            display(Provenance.from_dict(guard))


messages = chain(make_planner())
show(messages)

# %% [markdown]
# Every answer is the one that was asked for, and `taint` finds nothing:

# %%
taint(messages)

# %% [markdown]
# ## A temporary failure
#
# `FaultyBackend` wraps the backend and fails as planned. Here the engine dies once under the
# planner's model. The call is retried, and the answer is the planner's own. The chain notices
# nothing, but the attempts are recorded.

# %%
from mlx_guarded_llm.errors import EngineDied, FallbackRefused
from mlx_guarded_llm.testing.faulty import FaultyBackend


def dies(times):
    death = EngineDied("the engine was killed (SIGABRT).")
    return FaultyBackend(backend, {LARGE: [death] * times})


once = make_planner(dies(1)).invoke([ASK])
Provenance.from_dict(once["raw"].response_metadata["guard"])

# %% [markdown]
# ## A permanent failure
#
# Now it dies each time, and the small model is the fallback. It gives a plan, which looks as
# good as any other. That is how a chain silently goes wrong; so by default it stops:

# %%
try:
    make_planner(dies(9), max_retries=1, fallbacks=[SMALL]).invoke([ASK])
except FallbackRefused as error:
    print(error)

# %% [markdown]
# If a plan of the small model is better than none, say so: with `on_fallback="mark"` the chain
# goes on. Everything that rests on that plan is tainted, although the later steps are as asked
# for. (`rests_on` says which earlier steps the program's own messages rest on; `taint` knows
# this for the other messages.)

# %%
second_best = make_planner(dies(9), max_retries=1, fallbacks=[SMALL], on_fallback="mark")
messages = chain(second_best)
steps = taint(messages, rests_on={2: [1], 5: [1, 4]})
steps

# %% [markdown]
# The marked step, and the answer at the end that rests on it:

# %%
display(Provenance.from_dict(messages[1].response_metadata["guard"]))
print(messages[-1].content)
print("may be used:", not steps[-1])

# %% [markdown]
# `langchain_mlx_guarded.middleware.GuardedModelMiddleware` does the same inside an agent,
# for any chat model, including one in the cloud.
#
# ## Who did what when
#
# Three models took turns on one thread, and no load overlapped an answer.

# %%
backend.timeline()

# %%
backend.models()

# %%
backend.close()
