"""What token ids mean where a client sends them instead of text.

Each tokenizer has its own, and a request does not say of which its ids are. So a model's
entry in the settings says it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import InvalidRequest
from .errors import HTTPError, refused

if TYPE_CHECKING:
    from tiktoken import Encoding

REFUSE = "refuse"
MODEL = "model"  # the ids are the model's own; any other word is an encoding of tiktoken

Text = str | Sequence[int]


def check_setting(model: str, meaning: str) -> None:
    """Refuse a setting that names no tokenizer. Reads and fetches none.

    Raises:
        InvalidRequest: there is no such encoding, or no tiktoken.
    """
    if meaning in (REFUSE, MODEL):
        return
    where = f"models.{model}: token_ids is {meaning!r}"
    if find_spec("tiktoken") is None:
        raise InvalidRequest(
            f"{where}, which would be an encoding of tiktoken; that is not installed.",
            hint="pip install tiktoken",
        )
    import tiktoken

    known = tiktoken.list_encoding_names()
    if meaning not in known:
        raise InvalidRequest(
            f"{where}, which is no encoding of tiktoken.",
            hint=f"There are: {REFUSE}, {MODEL}, {', '.join(sorted(known))}.",
        )


def as_texts(given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[Text]:
    """What a client may send, as texts: a single list of ids is one."""
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    return [ids] if ids else [item for item in given if not isinstance(item, int)]


async def read_texts(
    texts: Sequence[Text], meaning: str, *, param: str, hint: str = ""
) -> list[Text]:
    """Texts as a backend takes them: as text, or as ids of the model's own tokenizer.

    Args:
        texts: each is text, or ids of tokens.
        meaning: the setting of the model.
        param: what the client calls them.
        hint: how a client sends text.

    Raises:
        HTTPError: there are ids and the setting refuses them, the encoding has no such ids,
            or it cannot be had.
    """
    if meaning == MODEL or all(isinstance(text, str) for text in texts):
        return list(texts)
    if meaning == REFUSE:
        raise refused(
            f"{param} has token ids, and nothing says of which tokenizer.",
            hint=f"Send text{hint}. Or name the tokenizer in the model's setting token_ids.",
            param=param,
            code="unsupported_parameter",
        )
    return await asyncio.to_thread(_decoded, texts, meaning, param)


def _decoded(texts: Sequence[Text], name: str, param: str) -> list[Text]:
    encoding = _encoding(name)
    decoded: list[Text] = []
    for i, text in enumerate(texts):
        try:
            # A client that cuts a long text may cut through a character.
            decoded.append(text if isinstance(text, str) else encoding.decode(list(text)))
        except (KeyError, OverflowError):
            raise refused(f"{param}.{i} has ids that {name} has not.", param=param) from None
    return decoded


def _encoding(name: str) -> Encoding:
    """The encoding, which tiktoken fetches at its first use and keeps."""
    import tiktoken

    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # of whatever it fetches with
        raise HTTPError(
            500,
            "tokenizer_unavailable",
            f"tiktoken cannot get its encoding {name} ({type(error).__name__}).",
            hint="Let the server reach the network once, or put the file into TIKTOKEN_CACHE_DIR.",
            headers={"x-should-retry": "false"},
        ) from error
