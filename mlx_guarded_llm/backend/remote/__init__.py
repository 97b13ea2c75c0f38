"""A backend elsewhere: the methods of `BaseBackend`, answered by a server.

`backend` checks what callers ask and sends it, `connection` is the thread that talks to the
server, and `frames` is what goes over the wire, for both of its ends.
"""
