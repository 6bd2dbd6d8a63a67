"""Logs on stderr, with every secret taken out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

HIDDEN = "***"


def configure_logs(secrets: Sequence[str], *, level: int = logging.WARNING) -> None:
    """Sends this process's logs from `level` up to stderr: lines for people on a terminal, JSON elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((_ForPeople if sys.stderr.isatty() else _AsJson)(Scrubber(secrets)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # of other people's libraries, what is wrong
    for ours in ("nearfar", "uvicorn"):
        logging.getLogger(ours).setLevel(level)


class Scrubber:
    """Takes the given secrets out of a text, and whatever else looks like one."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)  # a secret inside another must not leave its rest

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        from nearfar.serving.gateway.keys import scrub

        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return scrub(text)


class _ForPeople(logging.Formatter):
    def __init__(self, scrub: Scrubber) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._scrub = scrub

    def format(self, record: logging.LogRecord) -> str:
        return self._scrub(super().format(record))


class _AsJson(logging.Formatter):
    def __init__(self, scrub: Scrubber) -> None:
        super().__init__()
        self._scrub = scrub

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": self._scrub(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = self._scrub(self.formatException(record.exc_info))
        return msgspec.json.encode(line).decode()
