"""What runs in the engine's own process: it serves an engine to the program that started it.

`main` sets the process up, `serving` reads commands and hands them to the engine, `outbox`
sends what the engine reports, and `orphan` ends the process with its parent.
"""
