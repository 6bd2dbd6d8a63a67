"""Turns whatever an HTTP model server did wrong into one `UpstreamError` that says what to do about it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from nearfar.errors import (
    ContextTooLong,
    MalformedAnswer,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)

from .wire_json import UNREADABLE

#: How much of what a server said is repeated in a message.
SHOWN_CHARACTERS = 200

#: How servers say that the prompt does not fit: OpenAI and vLLM ("maximum context length", code
#: context_length_exceeded), llama.cpp (exceed_context_size_error), Anthropic ("prompt is too long", "exceed context
#: limit"), others. Read from their sources and error pages, October 2026.
_TOO_LONG = re.compile(
    r"context.{0,3}(length|window|size|limit)|(prompt|input|request) (is )?too long|reduce the length", re.IGNORECASE
)

#: The status that stands for an error which a server reported with 200; first match wins.
_STATUS_BY_WORDS = (
    (re.compile(r"rate.?limit|too many requests|quota", re.IGNORECASE), 429),
    (re.compile(r"overloaded|unavailable|server.?error|internal|api_error|timeout", re.IGNORECASE), 503),
    (re.compile(r"authentication|api.?key|unauthorized", re.IGNORECASE), 401),
    (re.compile(r"permission|forbidden", re.IGNORECASE), 403),
    (re.compile(r"not.?found|does not exist", re.IGNORECASE), 404),
    (re.compile(r"invalid|bad.?request|unsupported", re.IGNORECASE), 400),
)


class ErrorTranslator:
    """Makes the errors of one model.

    Args:
        model: the model's name in the config.
        url: where its server is, for the messages.
        secrets: texts that no message may repeat, whatever the server echoes.
    """

    def __init__(self, *, model: str, url: str, secrets: tuple[str, ...] = ()) -> None:
        self._model = model
        self._who = f"{model!r} at {url}"
        self._secrets = tuple(sorted((secret for secret in secrets if secret), key=len, reverse=True))

    def broken(self, exc: Exception, *, was_answering: bool) -> UpstreamError:
        """The connection was not made, or broke.

        Args:
            exc: what aiohttp or the operating system raised.
            was_answering: whether the headers of a 200 had come.
        """
        model, who = self._model, self._who
        why = self.quote(str(exc) or type(exc).__name__)
        when = "in the middle of its answer" if was_answering else "before its answer"
        match exc:
            case aiohttp.ConnectionTimeoutError():
                return UpstreamTimeout(
                    f"{who} took no connection in time. Is the address right?", model=model, was_sent=False
                )
            case asyncio.TimeoutError():
                return UpstreamTimeout(
                    f"{who} fell silent {when}. Try again, or raise its read timeout.",
                    model=model,
                    may_have_cost=True,
                )
            case aiohttp.ClientConnectorDNSError():
                return UpstreamUnavailable(
                    f"{who}: the host name is not known ({why}). Check its url.", model=model, was_sent=False
                )
            case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
                return UpstreamUnavailable(
                    f"{who}: TLS failed ({why}). Check its url; name a private authority in SSL_CERT_FILE.",
                    model=model,
                    was_sent=False,
                )
            case aiohttp.ClientConnectorError():
                return UpstreamUnavailable(
                    f"{who} cannot be reached ({why}). Is the server running?", model=model, was_sent=False
                )
            case aiohttp.ClientResponseError():
                return MalformedAnswer(
                    f"{who} does not answer in HTTP ({self.quote(exc.message)}). Check its url.",
                    model=model,
                    may_have_cost=True,
                )
            case _:
                return UpstreamUnavailable(
                    f"{who} broke off {when} ({why}). Try again.",
                    model=model,
                    may_have_cost=True,
                )

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """The server answered with a status other than 200."""
        if 300 <= status < 400:
            location = self.quote(headers.get("Location", "nowhere"))
            return UpstreamRejected(
                f"{self._who} redirects to {location}, which is not followed, for it would take the key along. "
                "Set url to where the server really is.",
                model=self._model,
                status=status,
            )
        if status < 300:
            return self.malformed(f"answered with status {status}", body)
        return self._by_status(status, body, retry_after_s=retry_after(headers), is_late=False)

    def reported(self, body: bytes) -> UpstreamError:
        """The server reported an error in a body or an event of a 200."""
        words = self._words(body)
        code = next((int(word) for word in words if re.fullmatch(r"[45]\d\d", word)), None)
        if code is None:
            text = " ".join(words)
            code = 400 if _TOO_LONG.search(text) else None
            code = code or next((status for pattern, status in _STATUS_BY_WORDS if pattern.search(text)), 500)
        return self._by_status(code, body, retry_after_s=None, is_late=True)

    def malformed(self, what: str, shown: bytes | str = b"") -> MalformedAnswer:
        """The answer is not what the wire format says; `what` continues the model's name."""
        seen = f": {self.quote(shown)}" if shown else ""
        return MalformedAnswer(f"{self._who} {what}{seen}.", model=self._model, status=200, may_have_cost=True)

    def quote(self, said: bytes | str) -> str:
        """What the server said: an error body's message where there is one; one line, short, without secrets."""
        text = said if isinstance(said, str) else self._message(said)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…")

    def _by_status(self, status: int, body: bytes, *, retry_after_s: float | None, is_late: bool) -> UpstreamError:
        """An error by its status; `is_late` where the server had begun with a 200."""
        words = " ".join(self._words(body))
        kind: type[UpstreamError] = UpstreamRejected
        fix = ""
        match status:
            case 429 if "insufficient_quota" in words:
                fix = " The account has no credit left."
            case 429:
                kind = UpstreamRateLimited
                fix = f" It asks to wait {retry_after_s:g} s." if retry_after_s is not None else " Try again later."
            case 408:
                kind = UpstreamTimeout
            case 409 | 425:
                kind = UpstreamUnavailable
            case _ if status >= 500:
                kind = UpstreamUnavailable
            case 401 | 403:
                fix = f" Check the API key that [models.{self._model}] names, and what it may use."
            case 402:
                fix = " Check the account's credit."
            case 404:
                fix = f" Check url and model in [models.{self._model}]."
            case 400 | 413 | 422 if _TOO_LONG.search(words):
                kind = ContextTooLong
                fix = " Shorten the conversation."
            case _:
                fix = " Check the request's options."
        phrase = f" {HTTPStatus(status).phrase}" if status in _KNOWN else ""
        how = "reported an error after a 200" if is_late else "answered"
        said = f": {self.quote(body)}" if body.strip() else ""
        return kind(
            f"{self._who} {how} ({status}{phrase}){said}.{fix}",
            model=self._model,
            status=status,
            retry_after_s=retry_after_s,
            may_have_cost=is_late,
        )

    def _message(self, body: bytes) -> str:
        error = _error_of(body)
        if isinstance(error, Mapping):
            message = error.get("message") or error.get("detail")
            return message if isinstance(message, str) else msgspec.json.encode(message or error).decode()
        return error if isinstance(error, str) else body[: 20 * SHOWN_CHARACTERS].decode(errors="replace")

    def _words(self, body: bytes) -> list[str]:
        """An error's code, type and message, as far as there are any."""
        error = _error_of(body)
        facts = [error.get(key) for key in ("code", "type", "status")] if isinstance(error, Mapping) else []
        return [*(str(fact) for fact in facts if fact is not None), self._message(body)]


_KNOWN = frozenset(HTTPStatus)


def _error_of(body: bytes) -> Any:
    """The error in a body, whatever shape: OpenAI's, Anthropic's, FastAPI's; None where there is no JSON."""
    try:
        value = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    if isinstance(value, Mapping):
        return value.get("error") or value
    return value


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How long a server asks to be left alone, in seconds; None where it does not say, or not understandably.

    Source: RFC 9110, section 10.2.3 (seconds or a date); `retry-after-ms` as OpenAI and Azure send it.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("Retry-After", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None
