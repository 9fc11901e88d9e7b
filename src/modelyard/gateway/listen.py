"""Where the gateway listens: who may be let in from where, and the socket itself."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import AddressInUse, UsageError


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Raises UsageError where the files do not make a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the TLS certificate or key cannot be used: {error}", hint="both must be PEM files"
            ) from error
        return context


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
