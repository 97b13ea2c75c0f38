"""From prepared requests to new tokens, or to vectors, step by step on the MLX thread.

`decoder.Decoder` is what the engine steps. `batch` implements it with mlx-lm's continuous batch,
`sequential` for models whose caches cannot be merged; `batchable` tests which of the two a model
gets. Both choose tokens with `sampling`, which applies `penalties` and each row's `constraint`,
made from a grammar by `grammars`. While a request is alone, one of `drafts` proposes its next
tokens, `speculation` says when and how many, and `batch` verifies them. `encoder` computes vectors,
in the order of `microbatch`.
"""
