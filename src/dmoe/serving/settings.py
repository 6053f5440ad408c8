"""What `dmoe serve` may be told, and the limits that keep its memory and latency bounded."""

import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from dmoe.errors import ConfigError, DataError

TOKEN_VARIABLE = "DMOE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Raises: ConfigError if a number is out of range or the server would be open to the network without a token."""

    model: Path
    name: str = "dmoe"
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 0  # of ONNX Runtime; 0 for one a core
    token: str | None = field(default=None, repr=False)
    allow_anonymous: bool = False
    max_body_mb: float = 16.0
    max_inflight_mb: float = 256.0  # of request bodies being read or answered, and what they unfold to
    max_decoded_mb: float = 64.0  # of one body once parsed, every row with its own value
    max_rows: int = 10_000  # of one request
    max_queue_rows: int = 40_000
    batch_rows: int = 256
    batch_delay_ms: float = 0.0
    read_timeout_s: float = 10.0  # for the head of a request, and again for its body
    timeout_s: float = 5.0  # from a whole request to its answer
    max_connections: int = 1000
    drain_delay_s: float = 1.0
    drain_timeout_s: float = 30.0
    access_log: bool = True

    def __post_init__(self) -> None:
        for name, least in (("threads", 0), ("max_rows", 1), ("batch_rows", 1), ("max_connections", 1), ("port", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        for name in ("max_body_mb", "max_decoded_mb", "read_timeout_s", "timeout_s", "drain_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        for name in ("batch_delay_ms", "drain_delay_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        if not self.max_inflight_mb >= self.max_body_mb + self.max_decoded_mb:
            raise ConfigError(
                f"--max-inflight-mb must be at least --max-body-mb and --max-decoded-mb together, "
                f"got {self.max_inflight_mb:g} and {self.max_body_mb + self.max_decoded_mb:g}"
            )
        if not self.max_queue_rows >= self.max_rows:
            raise ConfigError(
                f"--max-queue-rows must be at least --max-rows, got {self.max_queue_rows:g} and {self.max_rows:g}"
            )
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"--name must be letters, digits, '.', '_' and '-', got '{self.name}'")
        if not self.loopback and self.token is None and not self.allow_anonymous:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines and no token is set; "
                f"pass --token-file, set {TOKEN_VARIABLE}, or say --allow-anonymous"
            )

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK

    def token_matches(self, header: bytes) -> bool:
        """Whether an Authorization header carries the token; takes the same time wherever they differ."""
        assert self.token is not None
        return hmac.compare_digest(header, b"Bearer " + self.token.encode())


def read_token(file: Path | None) -> str | None:
    """The token of `file`, else of the environment variable DMOE_TOKEN, else None.

    Raises: DataError if the file cannot be read; ConfigError if the token is shorter than 16 characters.
    """
    where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if file is not None:
        where = str(file)
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: the token cannot be read ({error.__class__.__name__})") from None
    if token is None:
        return None
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{where}: a token must be at least 16 printable ASCII characters")
    return token
