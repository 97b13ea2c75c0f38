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
# # Answering questions from documents
#
# Retrieval with three models under one guard: one that embeds, a small one that is busy with a
# long answer, and a large one that must be loaded meanwhile. Who waits for whom?
#
# The page uses LangChain; the same with LlamaIndex is at the end. To run anywhere, it uses
# all-MiniLM-L6-v2 and two versions of SmolLM2 with 135 million parameters. The answers are real;
# models this small copy better than they reason. On a Mac use `"llama-3b"` as the small one and
# `"llama-70b"` as the large one.

# %%
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings
from mlx_guarded_llm import Backend, ProgressBars, Provenance

EMBEDDER = "all-minilm-l6-v2"
SMALL = "smollm2-135m"
LARGE = "smollm2-135m-bf16"

backend = Backend(load_wait=2.0, fairness_window=1.0, on_progress=ProgressBars())

# %% [markdown]
# ## The documents

# %%
documents = [
    "The harbour museum opens at 10 in the morning and closes at 5.",
    "A ticket to the harbour museum costs 12 euros; children under 6 pay nothing.",
    "The ferry to the island leaves from pier 3 every 40 minutes.",
    "The lighthouse was built in 1874 and is 31 metres high.",
    "Bicycles can be rented at the railway station for 9 euros a day.",
    "The fish market is held on Saturdays on the old quay.",
    "The town's library lends books, records and fishing rods.",
    "In winter the ferry does not run when the wind is stronger than force 8.",
]
embeddings = MLXGuardedEmbeddings(model=EMBEDDER, backend=backend)
store = InMemoryVectorStore.from_texts(documents, embeddings)

for document, score in store.similarity_search_with_score("How tall is the lighthouse?", k=3):
    print(f"{score:.2f}  {document.page_content}")

# %% [markdown]
# The embedding model is resident beside the others: in the engine, under the same guard, and in
# the same memory budget.

# %%
backend.models()

# %% [markdown]
# ## The chain

# %%
prompt = ChatPromptTemplate.from_template("{context}\n\n{question} Answer in one sentence.")
large = ChatMLXGuarded(model=LARGE, backend=backend, max_tokens=32)
chain = (
    {
        "context": store.as_retriever(search_kwargs={"k": 1})
        | (lambda found: found[0].page_content),
        "question": RunnablePassthrough(),
    }
    | prompt
    | large
)

# %% [markdown]
# ## A question comes at a bad time
#
# The small model is in the middle of a long answer. The question is embedded between two of its
# tokens, which needs no load. But the large model is not in memory, and its load must not
# overlap the small model's generation. It waits, here for two seconds at most; then the small
# model pauses between two tokens, the large one is loaded, and both go on.

# %%
small = backend.stream(
    SMALL, "Tell me about life in a harbour town.", max_tokens=40, request_id="long-answer"
)
first = next(small)  # it has begun

answer = chain.invoke("How high is the lighthouse?")
report = first.text + "".join(chunk.text for chunk in small)

print(answer.content)
Provenance.from_dict(answer.response_metadata["guard"])

# %% [markdown]
# ## Who waited for whom

# %%
backend.timeline()

# %%
request = answer.response_metadata["guard"]["request_id"]
print(backend.explain(request))

# %%
print(backend.explain("long-answer"))

# %% [markdown]
# The small model lost nothing. It stood still, went on where it had stopped, and ended when its
# 40 tokens were used up.

# %%
print(report)

# %% [markdown]
# ## More questions
#
# All three models are resident now. The answers of a batch are decoded together.

# %%
questions = ["On which day is the fish market held?", "How much is a ticket to the museum?"]
for question, reply in zip(questions, chain.batch(questions), strict=True):
    guard = Provenance.from_dict(reply.response_metadata["guard"])
    print(question)
    print(f"  {reply.content}  (as asked: {guard.as_asked}, waited {guard.queued:.2f} s)")

# %%
backend.models()

# %%
backend.close()

# %% [markdown]
# ## The same with LlamaIndex
#
# ```python
# from llama_index.core import Document, VectorStoreIndex
# from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
# from llama_index.llms.mlx_guarded import MLXGuarded
#
# index = VectorStoreIndex.from_documents(
#     [Document(text=text) for text in documents],
#     embed_model=MLXGuardedEmbedding(model_name=EMBEDDER, backend=backend),
# )
# engine = index.as_query_engine(llm=MLXGuarded(model=LARGE, backend=backend), similarity_top_k=1)
# print(engine.query("How high is the lighthouse?"))
# ```
