"""How much memory models take, and which model or request has reserved how much of it.

`footprint` predicts the size of a model from its files, with `cache_plan` for its caches;
`corrections` replaces predictions by measured sizes. `ledger` reserves memory within the
`budget`: the dispatcher of `backend` reports sizes to it, and `guard` asks it before it loads a
model or starts a request. Nothing here imports mlx.
"""
