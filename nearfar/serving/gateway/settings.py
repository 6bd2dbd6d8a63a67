"""What the gateway is told: where to listen, who may ask and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from nearfar.errors import ConfigError

from .keys import Key


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Safe unless told otherwise.

    Raises:
        ConfigError: a number out of range, or an address beyond loopback and no key.
    """

    host: str = "127.0.0.1"
    port: int = 8642  # 0: any free one
    keys: tuple[Key, ...] = ()  # none: no key is asked for, everybody may do everything, and only loopback is served
    allowed_hosts: tuple[str, ...] = ()  # `Host` headers to take besides loopback's, on a loopback address
    allow_origins: tuple[str, ...] = ()  # browser origins that may call; empty: none
    max_body_bytes: int = 16 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    receive_timeout_s: float = 30.0  # for a request's headers, and again for its body
    request_timeout_s: float = 600.0  # from arrival to the end of the answer
    max_concurrency: int = 512  # requests being answered; more are told to come back
    heartbeat_s: float = 15.0  # a stream that is silent for so long sends a comment, so that proxies keep it
    shutdown_grace_s: float = 30.0  # for requests in flight when told to stop

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"gateway.port must be in [0, 65535], not {self.port!r}.")
        for name in (
            "max_body_bytes",
            "max_header_bytes",
            "receive_timeout_s",
            "request_timeout_s",
            "max_concurrency",
            "heartbeat_s",
            "shutdown_grace_s",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"gateway.{name} must be more than 0, not {getattr(self, name)!r}.")
        if not self.is_loopback and not self.keys:
            raise ConfigError(
                f"gateway.host is {self.host!r}, beyond this machine, and no key is set. Make one: nearfar keys new."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
