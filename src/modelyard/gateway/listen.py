"""Where the gateway listens: who may be let in from where, and the socket itself."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import AddressInUse, UsageError
from modelyard.gateway.limits import WIRE


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. With `client_ca` only clients with a certificate of one of its authorities are let in; a key is asked
    of them all the same."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.certificate, self.key) if self.client_ca is None else (self.certificate, self.key, self.client_ca)

    def context(self) -> ssl.SSLContext:
        """Raises UsageError where the files do not make a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the TLS certificate or key cannot be used: {error}",
                hint="both must be PEM files, and the key that of the certificate",
            ) from error
        if self.client_ca is not None:
            _demand_certificates(context, self.client_ca)
        return context


def tls_of(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """From the options of a command. Raises UsageError where one of them needs another."""
    if certificate is not None and key is not None:
        return Tls(certificate, key, client_ca)
    if certificate is None and key is None and client_ca is None:
        return None
    raise UsageError("TLS needs both files", hint="give --tls-cert and --tls-key")


def _demand_certificates(context: ssl.SSLContext, authorities: Path) -> None:
    try:
        context.load_verify_locations(authorities)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the clients' certificate authority cannot be used: {error}", hint="a PEM file with its certificate"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session shows no certificate: it would outlive the authority that let it in.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def check_bind(host: str, *, has_key: bool, has_tls: bool, insecure: bool) -> None:
    """The rule for listening beyond loopback. Raises AddressInUse's refusal with what is missing."""
    if insecure or _is_loopback(host):
        return
    missing = [what for what, there in (("a key", has_key), ("TLS", has_tls)) if not there]
    if missing:
        raise AddressInUse(
            f"{host} is reachable from other machines, and {' and '.join(missing)} is missing",
            hint="give --tls-cert and --tls-key and keep keys on, or say --insecure-listen if something else guards it",
        )


def _is_loopback(host: str) -> bool:
    """Names are not looked up: 127.example.com can be anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound, listening TCP socket. Raises AddressInUse in plain words."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Accepted sockets inherit it. The kernel takes 2.5 MB of an answer otherwise before we learn that the
            # client does not read.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WIRE.unsent_bytes)
        sock.bind((host, port))
        sock.listen(4096)
    except OSError as error:
        sock.close()
        who = f"see who has it: ss -ltnp 'sport = :{port}'; or choose another with --port"
        raise AddressInUse(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint=who if error.errno == errno.EADDRINUSE else "choose another address with --host and --port",
        ) from error
    sock.setblocking(False)
    return sock
