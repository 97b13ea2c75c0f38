"""Grammars: what an answer may look like, for llguidance to hold it to.

Nothing here imports mlx. llguidance, of the extra `grammar`, is imported on first use.
"""
