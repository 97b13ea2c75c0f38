"""One model over several processes: the ranks of a group of `mlx.core.distributed`.

Rank 0 is the engine itself. It alone talks with the backend, prepares prompts, samples and makes
text of tokens. It tells the other ranks each thing that it is about to do with a model they share
(`orders`), and they do the same (`follower`), so that every rank takes the same steps. In these
steps the ranks exchange activations, and the tokens that rank 0 chose (`group`).

`leader` is rank 0's side. How the other ranks are started, and how orders reach them, is not known
here: see `ranks.Ranks`, and `worker.child.ranks`. `reach` finds out whether they can reach each
other.
"""
