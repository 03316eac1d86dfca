"""HTTPS with a self-signed certificate, created once: browsers on phones allow the camera to secure pages only."""

from __future__ import annotations

import datetime as dt
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

import segno
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = dt.timedelta(days=820)
"""Apple's systems refuse certificates that are valid for longer."""

RENEW_BEFORE_EXPIRY = dt.timedelta(days=30)


class Certificate(NamedTuple):
    """Paths of the PEM files, for uvicorn."""

    cert_path: Path
    key_path: Path


def data_dir() -> Path:
    """The folder that keeps this user's certificate between starts."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "echosight" / "https"


def load_or_create(folder: Path, names: list[str]) -> Certificate:
    """The certificate in `folder`, a new one where it is not valid for all these host names and addresses.

    Raises `OSError` where the folder cannot be written.
    """
    files = Certificate(folder / "certificate.pem", folder / "key.pem")
    if not _covers(files, names):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        _write_private(files.key_path, _pem(key))
        _write_private(files.cert_path, _self_sign(key, names).public_bytes(serialization.Encoding.PEM))
    return files


def host_names(host: str) -> list[str]:
    """Names and addresses of this machine when it listens on `host`; the first one is shown to users."""
    if host not in ("0.0.0.0", "::", ""):
        return [host, *(["localhost", "127.0.0.1"] if host != "127.0.0.1" else ["localhost"])]
    return list(dict.fromkeys([network_address(), socket.gethostname(), "localhost", "127.0.0.1", "::1"]))


def network_address() -> str:
    """This machine's address in its network; the loopback address where it has none. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def qr_code(text: str) -> str:
    """`text` as a QR code of half blocks, dark on light in any terminal."""
    rows = [list(row) for row in segno.make(text, micro=False).matrix_iter(border=2)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    blocks = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
    pairs = zip(rows[::2], rows[1::2], strict=True)
    lines = ("".join(blocks[bool(a), bool(b)] for a, b in zip(*pair, strict=True)) for pair in pairs)
    return "\n".join(f"  \x1b[30;107m{line}\x1b[0m" for line in lines)


def _covers(files: Certificate, names: list[str]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.cert_path.read_bytes())
        serialization.load_pem_private_key(files.key_path.read_bytes(), None)
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    fresh = certificate.not_valid_after_utc - RENEW_BEFORE_EXPIRY > dt.datetime.now(dt.UTC)
    return fresh and all(_general_name(name) in covered for name in names)


def _self_sign(key: ec.EllipticCurvePrivateKey, names: list[str]) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "EchoSight on this network")])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        address: IPv4Address | IPv6Address = ip_address(name)
    except ValueError:
        return x509.DNSName(name)
    return x509.IPAddress(address)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, data: bytes) -> None:
    """Other users cannot read the file at any moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
