"""How answers, models and progress look in a notebook. Nothing else imports it at the start."""

from .bars import ProgressBars, in_notebook

__all__ = ["ProgressBars", "in_notebook"]
