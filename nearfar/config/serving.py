"""What this machine serves: the gateway, and the vLLM servers that it starts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from .source import Section


class GatewaySection(Section):
    """`nearfar serve`; see `nearfar.serving.gateway.settings.GatewaySettings` for what each does."""

    host: str = "127.0.0.1"
    port: int = Field(8642, ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    max_body_bytes: PositiveInt = 16 * 1024 * 1024
    max_header_bytes: PositiveInt = 64 * 1024
    receive_timeout_s: PositiveFloat = 30.0
    request_timeout_s: PositiveFloat = 600.0
    max_concurrency: PositiveInt = 512
    heartbeat_s: PositiveFloat = 15.0
    shutdown_grace_s: PositiveFloat = 30.0


class EnginesSection(Section):
    """The vLLM servers of this machine."""

    python: Path | None = None  # of the environment that has vLLM; None: nearfar's own
    memory_gib: PositiveFloat | None = None  # for all of them together; None: no limit
    allow_untested: bool = False  # run a version of vLLM that nearfar was not tested with
