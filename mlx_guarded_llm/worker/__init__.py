"""The engine in a process of its own: the child's side and the parent's."""
