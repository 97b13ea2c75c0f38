"""Retrieval and an answer in LangChain, with both models under one guard.

    python docs/examples/rag_langchain.py [MODEL] [EMBEDDING_MODEL]

It needs `pip install "langchain-mlx-guarded[embeddings]"`.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import itemgetter

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings
from mlx_guarded_llm import Backend

FACTS = [
    "The museum opens at nine in the morning and closes at five.",
    "A ticket for the museum costs twelve euros; children pay nothing.",
    "The cafe in the garden serves soup and bread until three.",
    "Dogs may not enter the garden.",
]
PROMPT = ChatPromptTemplate.from_template(
    "Answer in one sentence, from these facts alone:\n{facts}\n\nQuestion: {question}"
)


def make_chain(
    chat: ChatMLXGuarded, embeddings: MLXGuardedEmbeddings, facts: Sequence[str]
) -> Runnable[str, AIMessage]:
    """A chain from a question to the message that answers it."""
    store = InMemoryVectorStore.from_texts(list(facts), embeddings)
    retriever = store.as_retriever(search_kwargs={"k": 2})
    found = {"facts": retriever | as_lines, "question": RunnablePassthrough()}
    return found | PROMPT | chat


def as_lines(documents: Sequence[Document]) -> str:
    """The documents' texts, one per line."""
    return "\n".join(document.page_content for document in documents)


def main(model: str = "smollm2-135m", embedding_model: str = "all-minilm-l6-v2") -> None:
    """Ask about the museum."""
    with Backend() as backend:
        chat = ChatMLXGuarded(model=model, backend=backend, max_tokens=48)
        embeddings = MLXGuardedEmbeddings(model=embedding_model, backend=backend)
        message = make_chain(chat, embeddings, FACTS).invoke("What does a ticket cost?")
        guard = message.response_metadata["guard"]
        print(message.text)
        print(*itemgetter("served_model", "deferred", "loading")(guard))
        print([(info.name, info.state) for info in backend.models()])


if __name__ == "__main__":
    main(*sys.argv[1:])
