"""Settings every service shares; each service adds its own fields and builds the class once, in main()."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from screentest.errors import BadRequest


class ServiceSettings(BaseSettings):
    """Environment ``SCREENTEST_*``. Secrets come as files: the environment of a process is readable by its user.

    ``metrics_address``: ``host:port`` for Prometheus, empty = none. They are neither encrypted nor guarded: loopback,
    or a network of one's own. ``health_file``: kept fresh while the service works, for a container's health check.
    """

    model_config = SettingsConfigDict(env_prefix="SCREENTEST_", frozen=True, extra="ignore")

    nats_url: str = "nats://127.0.0.1:4222"
    nats_user: str = ""
    nats_password_file: Path | None = None
    host: str = Field(default="local", pattern=r"^[a-z0-9-]{1,63}$")
    metrics_address: str = ""
    health_file: Path | None = None
    log_format: str = Field(default="auto", pattern="^(auto|json|console)$")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    def nats_password(self) -> SecretStr:
        return read_secret(self.nats_password_file)


class DepotSettings(BaseSettings):
    """Where the depot is and who we are there; ``public_url`` is the host a browser can resolve."""

    model_config = SettingsConfigDict(env_prefix="SCREENTEST_DEPOT_", frozen=True, extra="ignore")

    url: str = "http://127.0.0.1:8333"
    public_url: str = ""
    bucket: str = "screentest"
    region: str = "us-east-1"
    access_key: str = ""
    secret_key_file: Path | None = None

    def secret_key(self) -> SecretStr:
        return read_secret(self.secret_key_file)


def read_secret(path: Path | None) -> SecretStr:
    """The content of a secret file, empty when none is set; BadRequest when it is missing or empty."""
    if path is None:
        return SecretStr("")
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise BadRequest(f"secret file {path} cannot be read ({error.strerror}); run `make secrets`") from error
    if not secret:  # an empty token would mean: ask for none
        raise BadRequest(f"secret file {path} is empty; delete it and run `make secrets`")
    return SecretStr(secret)


def explain(error: ValidationError) -> str:
    """One line per wrong setting, by the name of its environment variable."""
    lines = [f"SCREENTEST_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
    return "settings are wrong:\n  " + "\n  ".join(lines)
