"""A certificate of one's own."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from echosight.server import certificate as https
from echosight.server.certificate import certificate, names_of, network_address, qr_code

NAMES = ["192.168.1.5", "server", "localhost"]


def test_it_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "https"
    first = certificate(folder, NAMES)
    pem = first.certificate.read_bytes()
    assert certificate(folder, NAMES) == first
    assert certificate(folder, ["localhost"]).certificate.read_bytes() == pem
    assert stat.S_IMODE(first.key.stat().st_mode) == 0o600


def test_a_new_address_needs_a_new_one(tmp_path: Path) -> None:
    pem = certificate(tmp_path, NAMES).certificate.read_bytes()
    assert certificate(tmp_path, [*NAMES, "192.168.1.6"]).certificate.read_bytes() != pem


def test_one_that_is_about_to_end_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "VALID", https.RENEWED_BEFORE)
    pem = certificate(tmp_path, NAMES).certificate.read_bytes()
    assert certificate(tmp_path, NAMES).certificate.read_bytes() != pem


@pytest.mark.parametrize("file", ["certificate", "key"])
def test_a_broken_one_is_replaced(tmp_path: Path, file: str) -> None:
    files = certificate(tmp_path, NAMES)
    getattr(files, file).write_text("broken")
    certificate(tmp_path, NAMES)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*files)


@pytest.mark.parametrize("name", ["localhost", "192.168.1.5"])
def test_a_client_that_trusts_it_is_served(tmp_path: Path, name: str) -> None:
    files = certificate(tmp_path, NAMES)
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ours.load_cert_chain(*files)
    theirs.load_verify_locations(files.certificate)
    to_us, to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ours.wrap_bio(to_us, to_them, server_side=True)
    client = theirs.wrap_bio(to_them, to_us, server_hostname=name)
    done = set()
    for side in [client, server] * 3:
        try:
            side.do_handshake()
            done.add(side)
        except ssl.SSLWantReadError:
            continue
    assert done == {client, server}


def test_names_begin_with_the_one_to_show() -> None:
    assert names_of("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert names_of("studio.local")[0] == "studio.local"
    everywhere = names_of("0.0.0.0")
    assert everywhere[0] == network_address()
    assert {"localhost", "127.0.0.1"} <= set(everywhere)


def test_qr_code_is_a_square() -> None:
    lines = qr_code("https://192.168.1.5:32550/").splitlines()
    cells = [line.removeprefix("  \x1b[30;107m").removesuffix("\x1b[0m") for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    assert abs(len(cells[0]) - 2 * len(cells)) <= 1
    assert set("".join(cells)) <= set(" ▀▄█")
    assert cells[1].startswith("  █▀▀▀▀▀█ ")
