"""The live view at `/`: what the server does, in a browser.

`view` gathers what is shown from the backend's health and its record, `pages` answers the
browser. `templates/` has the HTML, `static/` the style and the script, which asks for the parts
that change every two seconds.
"""

from .pages import API

__all__ = ["API"]
