"""HTTPS without an authority: a certificate of one's own, made once, so that phones let the page use their camera."""

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

# Apple's systems refuse certificates that are valid for longer.
VALID = dt.timedelta(days=820)
RENEWED_BEFORE = dt.timedelta(days=30)


class Certificate(NamedTuple):
    """Paths of the PEM files, for uvicorn."""

    certificate: Path
    key: Path


def own_folder() -> Path:
    """Where this user's certificate is kept between starts."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "echosight" / "https"


def certificate(folder: Path, names: list[str]) -> Certificate:
    """The certificate in `folder` for these host names and addresses; a new one where none is valid for all of them.

    Raises `OSError` where the folder cannot be written.
    """
    files = Certificate(folder / "certificate.pem", folder / "key.pem")
    if not _covers(files, names):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        _write(files.key, _pem(key))
        _write(files.certificate, _signed(key, names).public_bytes(serialization.Encoding.PEM))
    return files


def names_of(host: str) -> list[str]:
    """What this machine is called by others when it listens at `host`: first the name or address to show people."""
    if host not in ("0.0.0.0", "::", ""):
        return [host, *(["localhost", "127.0.0.1"] if host != "127.0.0.1" else ["localhost"])]
    return list(dict.fromkeys([network_address(), socket.gethostname(), "localhost", "127.0.0.1", "::1"]))


def network_address() -> str:
    """This machine's address in its own network; the loopback address where it is in none. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def qr_code(text: str) -> str:
    """`text` as a QR code of half blocks, dark on light whatever the terminal's colours are."""
    rows = [list(row) for row in segno.make(text, micro=False).matrix_iter(border=2)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    blocks = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
    pairs = zip(rows[::2], rows[1::2], strict=True)
    lines = ("".join(blocks[bool(a), bool(b)] for a, b in zip(*pair, strict=True)) for pair in pairs)
    return "\n".join(f"  \x1b[30;107m{line}\x1b[0m" for line in lines)


def _covers(files: Certificate, names: list[str]) -> bool:
    try:
        known = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        serialization.load_pem_private_key(files.key.read_bytes(), None)
        covered = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    fresh = known.not_valid_after_utc - RENEWED_BEFORE > dt.datetime.now(dt.UTC)
    return fresh and all(_general_name(name) in covered for name in names)


def _signed(key: ec.EllipticCurvePrivateKey, names: list[str]) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "EchoSight on this network")])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + VALID)
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


def _write(path: Path, data: bytes) -> None:
    """Readable by nobody else from the first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
