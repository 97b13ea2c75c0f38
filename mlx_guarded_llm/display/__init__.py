"""How answers, models and progress look in a notebook or in IPython.

`answers` and `tables` make HTML, with the pieces in `html`; the `_repr_html_` methods of results
and lists call them, and import them only then. `bars` draws progress, for `on_progress`.
"""

from .bars import ProgressBars, in_notebook

__all__ = ["ProgressBars", "in_notebook"]
