"""Logs on stderr, with every secret taken out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

HIDDEN = "***"


def configure_logs(secrets: Sequence[str], *, level: int = logging.WARNING) -> None:
    """Sends the logs from `level` up to stderr, lines for people on a terminal and JSON elsewhere."""
    import structlog

    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            Scrubber(secrets),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class Scrubber:
    """A structlog processor that hides the given secrets, and whatever else looks like one."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)  # a secret inside another must not leave its rest

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        return {key: self._clean(value) for key, value in event.items()}

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._clean(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(inner) for inner in value]
        if isinstance(value, int | float | None):
            return value
        return self.text(repr(value))

    def text(self, text: str) -> str:
        """The text without secrets."""
        from nearfar.serving.gateway.keys import scrub

        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return scrub(text)
