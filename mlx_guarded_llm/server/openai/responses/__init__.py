"""`/v1/responses`."""

from .create import create_response
from .requests import ResponseRequest
from .stored import (
    InputItemsQuery,
    ShowQuery,
    delete_response,
    list_input_items,
    show_response,
)

__all__ = [
    "InputItemsQuery",
    "ResponseRequest",
    "ShowQuery",
    "create_response",
    "delete_response",
    "list_input_items",
    "show_response",
]
