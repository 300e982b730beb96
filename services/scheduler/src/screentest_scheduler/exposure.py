"""What must be in place before the API listens beyond this machine."""

from __future__ import annotations

from pathlib import Path

import grpc

from screentest.addresses import is_loopback
from screentest.errors import BadRequest


def credentials(
    address: str, cert_file: Path | None, key_file: Path | None, *, has_token: bool
) -> grpc.ServerCredentials | None:
    """What the server proves itself with; None = plain text, on loopback only.

    BadRequest for an address beyond loopback without certificate or token, and for half a pair of files.
    """
    if (cert_file is None) != (key_file is None):
        raise BadRequest("SCREENTEST_GRPC_TLS_CERT_FILE and SCREENTEST_GRPC_TLS_KEY_FILE go together; set both")
    if not is_loopback(address):
        _require(has_token, address, "a token", "SCREENTEST_GRPC_TOKEN_FILE (`make secrets` writes it)")
        _require(
            cert_file is not None,
            address,
            "TLS",
            "SCREENTEST_GRPC_TLS_CERT_FILE and SCREENTEST_GRPC_TLS_KEY_FILE (`make certs` writes them)",
        )
    if cert_file is None or key_file is None:
        return None
    return grpc.ssl_server_credentials([(_read(key_file), _read(cert_file))])


def _require(is_there: bool, address: str, what: str, setting: str) -> None:
    if not is_there:
        raise BadRequest(
            f"the scheduler does not listen on {address}, beyond this machine, without {what}; "
            f"set {setting}, or bind to 127.0.0.1 with SCREENTEST_GRPC_ADDRESS"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"TLS file {path} cannot be read ({error.strerror}); run `make certs`") from error
