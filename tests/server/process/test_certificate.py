"""The self-signed certificate."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from echosight.server import certificate as module
from echosight.server.certificate import host_names, load_or_create, network_address, qr_code

NAMES = ["192.168.1.5", "server", "localhost"]


def test_it_is_created_once(tmp_path: Path) -> None:
    folder = tmp_path / "https"
    first = load_or_create(folder, NAMES)
    pem = first.cert_path.read_bytes()
    assert load_or_create(folder, NAMES) == first
    assert load_or_create(folder, ["localhost"]).cert_path.read_bytes() == pem
    assert stat.S_IMODE(first.key_path.stat().st_mode) == 0o600


def test_a_new_address_needs_a_new_certificate(tmp_path: Path) -> None:
    pem = load_or_create(tmp_path, NAMES).cert_path.read_bytes()
    assert load_or_create(tmp_path, [*NAMES, "192.168.1.6"]).cert_path.read_bytes() != pem


def test_a_certificate_that_expires_soon_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALIDITY", module.RENEW_BEFORE_EXPIRY)
    pem = load_or_create(tmp_path, NAMES).cert_path.read_bytes()
    assert load_or_create(tmp_path, NAMES).cert_path.read_bytes() != pem


@pytest.mark.parametrize("file", ["cert_path", "key_path"])
def test_a_broken_file_is_replaced(tmp_path: Path, file: str) -> None:
    files = load_or_create(tmp_path, NAMES)
    getattr(files, file).write_text("broken")
    load_or_create(tmp_path, NAMES)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*files)


@pytest.mark.parametrize("name", ["localhost", "192.168.1.5"])
def test_a_client_that_trusts_it_can_connect(tmp_path: Path, name: str) -> None:
    files = load_or_create(tmp_path, NAMES)
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ours.load_cert_chain(*files)
    theirs.load_verify_locations(files.cert_path)
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


def test_the_first_name_is_the_one_to_show() -> None:
    assert host_names("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert host_names("studio.local")[0] == "studio.local"
    everywhere = host_names("0.0.0.0")
    assert everywhere[0] == network_address()
    assert {"localhost", "127.0.0.1"} <= set(everywhere)


def test_qr_code_is_a_square() -> None:
    lines = qr_code("https://192.168.1.5:32550/").splitlines()
    cells = [line.removeprefix("  \x1b[30;107m").removesuffix("\x1b[0m") for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    assert abs(len(cells[0]) - 2 * len(cells)) <= 1
    assert set("".join(cells)) <= set(" ▀▄█")
    assert cells[1].startswith("  █▀▀▀▀▀█ ")
