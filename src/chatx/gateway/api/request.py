"""What a request says: where it leads, what it asks for, its key and its body. Everything is bounded and strict.

Rules:
1. Ids are taken from the path as it was sent (`raw_path`), since in the decoded one a slash in an id and one between
   two parts of the path are alike. Servers and frameworks have what they are mounted at in the one path, in the other,
   in both or in none; so the decoded path says how much of the sent one is what it is mounted at.
2. What is not percent-encoded UTF-8 is refused, and not replaced: a replacement would be another room.
3. A parameter that is unknown or comes twice is refused: what is misspelt would be passed over without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, unquote_to_bytes

from msgspec import DecodeError, Struct, ValidationError, convert
from msgspec.json import decode

from chatx.core.validation import ID_LIMIT
from chatx.errors import InvalidMessage
from chatx.gateway.api.problems import Refusal, refusal_of

T = TypeVar("T", bound=Struct)

PATH_BYTES: Final = 2048
"""Bytes of a path as it was sent, with what it is mounted at. An id of 128 bytes has 384 at most."""

QUERY_BYTES: Final = 2048
"""Bytes of a query as it was sent."""

HEADER_BYTES: Final = 32_768
"""Bytes of all headers together."""

_NOT_ENCODED = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_KEY = re.compile(r'"((?:[^"\\]|\\["\\])*)"')


class Target(NamedTuple):
    """Where a request leads.

    Attributes:
        mounted: Where clients find the application, decoded; empty at the root.
        parts: The parts of the path behind that, each decoded.
    """

    mounted: str
    parts: tuple[str, ...]


def target_of(scope: Mapping[str, Any]) -> Target:
    """Return where a request leads.

    Raises:
        Refusal: The path is too long, or no percent-encoded UTF-8.
    """
    path: str = scope["path"]
    raw = (scope.get("raw_path") or b"").partition(b"?")[0]
    if max(len(raw), len(path)) > PATH_BYTES:
        raise Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, f"A path has at most {PATH_BYTES} bytes.")
    root: str = scope.get("root_path") or ""
    mounted = _mounted(path, root)
    behind = path[len(mounted) :]
    sent = unquote(raw.decode("latin-1"))
    if not sent.endswith(behind):
        behind = behind.removesuffix("/")  # which Litestar adds
    if not raw or not sent.endswith(behind):
        # Somebody on the way tells the decoded path only, so what is between the ends of it is one id.
        if "\ufffd" in behind:
            raise refusal_of(InvalidMessage("The path is no UTF-8; percent-encode the bytes of UTF-8."))
        first, _, rest = behind.removeprefix("/").partition("/")
        return Target(mounted, (first, *rest.rsplit("/", 1)) if rest else (first,))
    left = len(sent) - len(behind)
    if not root.endswith(sent[:left]):
        root = sent[:left]
    parts = raw.split(b"/")
    while left >= 0 and parts:
        left -= len(unquote(parts.pop(0).decode("latin-1"))) + 1
    return Target(root, tuple(_decoded(part, "The path") for part in parts))


def _mounted(path: str, root: str) -> str:
    """Return with how much of what a server and frameworks call the root a path begins."""
    while root:
        if path == root or path.startswith(root + "/"):
            return root
        # hypercorn's own root is not in its paths; what a framework mounts below it is.
        _, slash, rest = root[1:].partition("/")
        root = slash + rest
    return ""


def _decoded(part: bytes, what: str) -> str:
    wrong = _NOT_ENCODED.search(part)
    if wrong is not None:
        raise refusal_of(
            InvalidMessage(f"{what} has a % with no two hexadecimal digits behind it; write % itself as %25.")
        )
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise refusal_of(InvalidMessage(f"{what} is no UTF-8; percent-encode the bytes of UTF-8.")) from None


def query_of(scope: Mapping[str, Any], kind: type[T]) -> T:
    """Return the query of a request.

    Raises:
        Refusal: It is too long, no percent-encoded UTF-8, or not what may be asked for here.
    """
    query: bytes = scope.get("query_string", b"")
    if len(query) > QUERY_BYTES:
        raise Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, f"A query has at most {QUERY_BYTES} bytes.")
    given: dict[str, str] = {}
    for pair in query.split(b"&"):
        if not pair:
            continue
        name, _, value = (_decoded(each, "The query") for each in pair.replace(b"+", b" ").partition(b"="))
        if name in given:
            raise refusal_of(InvalidMessage(f"The query has {name[:50]!r} twice; give it once."))
        given[name] = value
    try:
        return convert(given, kind, strict=False)
    except ValidationError as error:
        known = ", ".join(kind.__struct_fields__) or "no parameters"
        raise refusal_of(InvalidMessage(f"The query is not valid: {error}. Here it has {known}.")) from None


def body_of(body: bytes, kind: type[T]) -> T:
    """Return the body of a request.

    Raises:
        Refusal: It is not JSON, or not what is sent here.
    """
    try:
        return decode(body, type=kind)
    except (DecodeError, UnicodeError, RecursionError) as error:
        # What a UnicodeError says quotes the input.
        problem = "Expected valid UTF-8" if isinstance(error, UnicodeError) else str(error)
    fields = ", ".join(kind.__struct_fields__)
    raise refusal_of(InvalidMessage(f"The body is not valid: {problem}. Send a JSON object with {fields}."))


def check_type(headers: Mapping[str, str]) -> None:
    """Check that a body is JSON by its headers.

    Raises:
        Refusal: It is something else, in another character set, or compressed.
    """
    kind, *parameters = headers.get("content-type", "").lower().split(";")
    charsets = [each.partition("=")[2].strip().strip('"') for each in parameters if each.strip().startswith("charset")]
    if (
        kind.strip() != "application/json"
        or any(each not in ("utf-8", "utf8") for each in charsets)
        or headers.get("content-encoding", "identity").strip().lower() not in ("identity", "")
    ):
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Send JSON in UTF-8, not compressed, with Content-Type: application/json.",
            (b"accept", b"application/json"),
        )


def check_headers(scope: MutableMapping[str, Any]) -> None:
    """Check the size of the headers.

    Raises:
        Refusal: They are too large.
    """
    if sum(len(name) + len(value) for name, value in scope.get("headers", ())) > HEADER_BYTES:
        raise Refusal(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"Headers have at most {HEADER_BYTES} bytes together."
        )


def key_of(scope: Mapping[str, Any]) -> str | None:
    """Return the idempotency key of a request, with quotes around it or without; None where it has none.

    Raises:
        Refusal: There are two, or it is no UTF-8; the engine says what else a key may not be.
    """
    found = [value for name, value in scope.get("headers", ()) if name.lower() == b"idempotency-key"]
    if not found:
        return None
    if len(found) > 1:
        raise refusal_of(InvalidMessage("There are two Idempotency-Keys; send one."))
    try:
        text = found[0].strip().decode()
    except UnicodeDecodeError:
        raise refusal_of(InvalidMessage(f"The Idempotency-Key is no UTF-8; send 1 to {ID_LIMIT} bytes.")) from None
    quoted = _KEY.fullmatch(text)
    return text if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1])
