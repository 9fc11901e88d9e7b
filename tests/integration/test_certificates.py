"""TLS whose files change while it serves, and clients that must show a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from authorities import Authority
from modelyard.errors import UsageError
from modelyard.gateway.certificates import Certificates
from modelyard.gateway.listen import Tls, listening_socket


class Echo(asyncio.Protocol):
    """Says back what it hears."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]


class Files:
    """The files that a server is told of, and what they are filled with."""

    def __init__(self, folder: Path) -> None:
        self.tls = Tls(folder / "served.pem", folder / "served.key", folder / "clients.pem")

    def put(self, certificate: Path, key: Path, clients: Path) -> None:
        for source, target in zip((certificate, key, clients), self.tls.files, strict=True):
            fresh = target.with_suffix(".new")
            shutil.copy(source, fresh)
            fresh.replace(target)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("one"), "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture
def files(tmp_path: Path, one: Authority) -> Files:
    files = Files(tmp_path)
    files.put(*one.sign("server"), one.certificate)
    return files


@contextlib.asynccontextmanager
async def serving(files: Files) -> AsyncIterator[tuple[Certificates, int]]:
    certificates = Certificates(files.tls)
    with listening_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        server = await asyncio.get_running_loop().create_server(Echo, sock=sock, ssl=certificates.context)
        yield certificates, port
        server.close()


@pytest.fixture
async def served(files: Files) -> AsyncIterator[tuple[Certificates, int]]:
    async with serving(files) as what:
        yield what


def trusting(authority: Authority, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


async def says_hello(port: int, context: ssl.SSLContext) -> bool:
    """Whether a handshake and an echo come through."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.write(b"hello")
        heard = await reader.read(5)
        writer.close()
        return heard == b"hello"
    except (ssl.SSLError, ConnectionError):
        return False


async def test_a_client_without_the_authoritys_certificate_is_not_let_in(
    served: tuple[Certificates, int], one: Authority, other: Authority
) -> None:
    _, port = served
    assert await says_hello(port, trusting(one, one.sign("client")))
    assert not await says_hello(port, trusting(one))
    assert not await says_hello(port, trusting(one, other.sign("client")))


async def test_new_files_are_served_to_new_handshakes_and_open_connections_stay(
    served: tuple[Certificates, int], files: Files, one: Authority, other: Authority
) -> None:
    await new_files_are_served(*served, files, one, other)


def test_the_event_loop_of_the_gateway_hands_over_just_so(files: Files, one: Authority, other: Authority) -> None:
    async def scenario() -> None:
        async with serving(files) as (certificates, port):
            await new_files_are_served(certificates, port, files, one, other)

    uvloop.run(scenario())


async def new_files_are_served(
    certificates: Certificates, port: int, files: Files, one: Authority, other: Authority
) -> None:
    ours, theirs = trusting(one, one.sign("client")), trusting(other, other.sign("client"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ours, server_hostname="localhost")
    assert not certificates.follow()
    files.put(*other.sign("server"), other.certificate)
    assert await says_hello(port, ours), "not before it was looked at"
    assert certificates.follow()
    assert await says_hello(port, theirs)
    assert not await says_hello(port, ours), "an authority that was taken away lets nobody in"
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    writer.close()


async def test_files_that_do_not_fit_each_other_change_nothing_until_they_do(
    served: tuple[Certificates, int], files: Files, one: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates, port = served
    client = trusting(one, one.sign("client"))
    certificate, key = one.sign("next")
    shutil.copy(certificate, files.tls.certificate)
    for _ in range(3):
        assert not certificates.follow()
    assert capsys.readouterr().out.count("\n") == 1, "said once"
    assert await says_hello(port, client)
    shutil.copy(key, files.tls.key)
    assert certificates.follow()
    assert await says_hello(port, client)
    files.tls.key.unlink()
    assert not certificates.follow()
    assert await says_hello(port, client)


async def test_no_handshake_fails_while_certificates_are_replaced_over_and_over(
    served: tuple[Certificates, int], files: Files, one: Authority
) -> None:
    certificates, port = served
    client = trusting(one, one.sign("client"))
    pairs = [one.sign(f"server-{number}") for number in range(3)]
    for round_ in range(12):
        files.put(*pairs[round_ % 3], one.certificate)
        asked = [asyncio.create_task(says_hello(port, client)) for _ in range(8)]
        assert certificates.follow()
        assert all(await asyncio.gather(*asked))


def test_what_cannot_be_used_at_the_start_is_refused_in_words(tmp_path: Path, one: Authority) -> None:
    certificate, key = one.sign("good")
    _, foreign_key = one.sign("foreign")
    (tmp_path / "none.pem").write_text("none")
    for tls in (
        Tls(certificate, tmp_path / "absent"),
        Tls(certificate, foreign_key),
        Tls(certificate, key, tmp_path / "none.pem"),
    ):
        with pytest.raises((UsageError, OSError)):
            Certificates(tls)
        with pytest.raises(UsageError, match="cannot be used"):
            tls.context()


def test_accepted_sockets_hold_little_that_was_not_sent() -> None:
    with listening_socket("127.0.0.1", 0) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()) as reader:
            accepted, _ = listener.accept()
            with accepted:
                accepted.setblocking(False)
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                taken = 0
                try:
                    while taken < 10_000_000:
                        taken += accepted.send(b"x" * 65_536)
                except BlockingIOError:
                    pass
                assert taken < 1_000_000
