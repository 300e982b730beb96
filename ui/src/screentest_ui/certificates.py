"""The certificates of the scheduler's API: a small authority of one's own, and what it signs for the server.

An authority, not a self-signed server: new names get a new server certificate, and no client needs a new file.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from screentest.errors import BadRequest
from screentest_ui.servers import write_private

CA_DAYS = 3650
# What browsers and most TLS libraries take at most is 825 days; `make certs` signs again in a second.
SERVER_DAYS = 825
# A clock that is a little behind must not find a certificate that is not valid yet.
BACKDATED = datetime.timedelta(hours=1)
# `scheduler` is the name of the service in compose.yaml.
ALWAYS = ("localhost", "127.0.0.1", "::1", "scheduler")

PrivateKey = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files in PEM. ``ca`` is for the clients; the others stay with the server, ``ca_key`` nowhere but here."""

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path

    @classmethod
    def in_(cls, directory: Path) -> Certificates:
        return cls(
            ca=directory / "grpc-ca.pem",
            ca_key=directory / "grpc-ca.key",
            server=directory / "grpc-server.pem",
            server_key=directory / "grpc-server.key",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """``names``: hosts and addresses that clients may call the server by. ``until``: aware UTC."""

    names: tuple[str, ...]
    until: datetime.datetime


def ensure(directory: Path, now: datetime.datetime) -> Certificates:
    """What is missing is made; what is there stays as it is."""
    files = Certificates.in_(directory)
    if not (files.server.exists() and files.server_key.exists() and files.ca.exists()):
        sign(directory, (), now)
    return files


def sign(directory: Path, names: Sequence[str], now: datetime.datetime) -> Signed:
    """A new server certificate for this machine's names and ``names``. The authority is made once and kept.

    BadRequest for a name that no certificate can carry.
    """
    files = Certificates.in_(directory)
    every_name = tuple(dict.fromkeys((*ALWAYS, socket.gethostname(), *names)))
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in every_name])
    ca_key, ca = _authority(files, now)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + datetime.timedelta(days=SERVER_DAYS), ca.not_valid_after_utc)
    certificate = (
        _builder("screentest scheduler", ca.subject, key, now, until)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private(files.server_key, _pem_key(key))
    write_private(files.server, _pem(certificate))
    return Signed(names=every_name, until=until)


def _authority(files: Certificates, now: datetime.datetime) -> tuple[PrivateKey, x509.Certificate]:
    if files.ca.exists() and files.ca_key.exists():
        return _read_authority(files, now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "screentest CA")])
    certificate = (
        _builder("screentest CA", subject, key, now, now + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs_certificates(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(files.ca_key, _pem_key(key))
    write_private(files.ca, _pem(certificate))
    return key, certificate


def _read_authority(files: Certificates, now: datetime.datetime) -> tuple[PrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(files.ca_key.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(files.ca.read_bytes())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{files.ca} and {files.ca_key} cannot be used ({error}); delete both for new ones") from error
    if not isinstance(key, PrivateKey) or key.public_key() != certificate.public_key():
        raise BadRequest(f"{files.ca_key} is not the key of {files.ca}; delete both for new ones")
    if certificate.not_valid_after_utc <= now:
        raise BadRequest(f"{files.ca} has expired; delete it and {files.ca_key}, and give the new one to every client")
    return key, certificate


def _builder(
    common_name: str, issuer: x509.Name, key: PrivateKey, now: datetime.datetime, until: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
    )


def _signs_certificates() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise BadRequest(f"--name {name!r} is neither a host name nor an address: {error}") from error


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem_key(key: PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
