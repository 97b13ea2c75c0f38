"""Tool calls: from text that arrives in pieces to calls of the offered functions.

`structure` makes a `reading.CallReading` for each call. `cursor` reads the text step by step,
`values` the values in it, `offered` is the check that every call must pass, and the other modules
are the grammars in which models write calls. A grammar is a generator that yields when it needs
more text. So each character is read once, and the grammar always knows whether it is in a string.

Nothing here imports mlx.
"""
