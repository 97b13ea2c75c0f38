"""The environment lets LlamaIndex split documents, as every index of it does."""

from __future__ import annotations

from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter

SENTENCE = "This is a sentence about nothing at all. "


def test_a_long_text_is_split_into_sentences() -> None:
    splitter = SentenceSplitter(chunk_size=128, chunk_overlap=0)
    nodes = splitter.get_nodes_from_documents([Document(text=SENTENCE * 400)])
    assert len(nodes) > 10
    assert all(node.get_content().endswith("at all.") for node in nodes)
