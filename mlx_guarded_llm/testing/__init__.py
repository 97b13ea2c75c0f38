"""Tools to test code that runs MLX models: small models and the witness.

Nothing here is imported by the rest of the library.
"""
