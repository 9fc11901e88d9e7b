"""HTTP towards servers of model files: redirects that leak nothing, proxies, certificates, and what a failure means.

A redirect is followed by hand: whoever is asked next gets the token only while every step stayed at the origin that it
was meant for, and nothing leads from https back to http."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from yarl import URL

from modelyard import __version__
from modelyard.errors import FetchFailed
from modelyard.settings import Network

MAX_REDIRECTS = 10
MAX_JSON_BYTES = 64 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Unreachable(FetchFailed):
    """Nobody answered: the network, the name, the proxy or the certificate stands in the way."""


class Interrupted(Exception):
    """An attempt that may be repeated. `wait_s` is what the server asks for; None where it does not say."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Patience:
    """`stall_s` without a byte ends an attempt; `attempts` in a row without any new byte end the fetch: by default a
    network that is gone is waited for about a minute and a half. A server that asks for more than `longest_wait_s` is
    told to the user instead of being waited for."""

    connect_s: float = 15.0
    stall_s: float = 30.0
    attempts: int = 10
    first_pause_s: float = 0.5
    longest_pause_s: float = 15.0
    longest_wait_s: float = 120.0

    def pause_s(self, failures: int, jitter: float, asked_s: float | None) -> float:
        """Before the attempt after `failures` of them in a row: doubled each time and spread over half of that, or
        what the server asks for. `jitter` in [0, 1)."""
        if asked_s is not None:
            return asked_s
        whole = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (failures - 1))
        return whole * (0.5 + jitter / 2)


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` (of any case) are those of the first server asked, which a redirect would hide; `origin` is who
    answered."""

    response: aiohttp.ClientResponse
    headers: Mapping[str, str]
    origin: str

    @property
    def status(self) -> int:
        return self.response.status


class Web:
    """A session; use it as a context. Its errors are Unreachable, FetchFailed and Interrupted."""

    def __init__(self, network: Network, patience: Patience) -> None:
        self._network = network
        self.patience = patience

    async def __aenter__(self) -> Web:
        # No environment, no netrc: what is sent where is decided here.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_trust(self._network.certificate)),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.patience.connect_s, sock_read=self.patience.stall_s
            ),
            headers={"User-Agent": f"modelyard/{__version__}", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @asynccontextmanager
    async def ask(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, token: str = ""
    ) -> AsyncGenerator[Answer]:
        """The answer of whoever the redirects lead to; any status."""
        here = URL(url, encoded=True)
        home, first = here.origin(), None
        try:
            for _ in range(MAX_REDIRECTS):
                sent = dict(headers or {})
                if token:
                    sent["Authorization"] = f"Bearer {token}"
                async with self._session.request(
                    method, here, headers=sent, allow_redirects=False, proxy=self._proxy(here)
                ) as response:
                    first = first if first is not None else response.headers
                    if response.status not in _REDIRECTS or "Location" not in response.headers:
                        yield Answer(response, first, str(here.origin()))
                        return
                    here = _next(here, response.headers["Location"])
                if here.origin() != home:
                    token = ""
            raise FetchFailed(f"{home} redirects more than {MAX_REDIRECTS} times", hint="try another mirror")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, here) from error

    async def json(self, url: str, *, token: str = "") -> tuple[Answer, bytes]:
        """An answer with its whole body, tried again where that may help."""

        async def once() -> tuple[Answer, bytes]:
            async with self.ask(url, token=token) as answer:
                raise_if_passing(answer)
                body = await answer.response.content.read(MAX_JSON_BYTES + 1)
                while len(body) <= MAX_JSON_BYTES and (more := await answer.response.content.read(MAX_JSON_BYTES)):
                    body += more
                if len(body) > MAX_JSON_BYTES:
                    raise FetchFailed(f"{answer.origin} answers without an end", hint="try another mirror")
                return answer, body

        failures = 0
        while True:
            try:
                return await once()
            except Interrupted as reason:
                failures += 1
                await self.wait_after(reason, failures)

    async def wait_after(self, reason: Interrupted, failures: int, jitter: float = 0.5) -> None:
        """Pause before another attempt. Raises FetchFailed where there have been enough, or the wait would be long."""
        if failures >= self.patience.attempts:
            raise FetchFailed(
                f"{reason}; {failures} attempts in a row brought nothing",
                hint="try again later: what has arrived is kept, and the next fetch goes on from there",
            )
        pause_s = self.patience.pause_s(failures, jitter, reason.wait_s)
        if pause_s > self.patience.longest_wait_s:
            raise FetchFailed(
                f"{reason}, and asks to wait {pause_s:.0f} s",
                hint="try again after that; a token (HF_TOKEN) raises the limits of most hubs",
            )
        await asyncio.sleep(pause_s)

    def _proxy(self, url: URL) -> str | None:
        proxies = self._network.proxies
        if needs_no_proxy(url.host or "", proxies.get("no", "")):
            return None
        return proxies.get(url.scheme) or proxies.get("all")


def needs_no_proxy(host: str, listed: str) -> bool:
    """Whether `host` is in a NO_PROXY list: `*`, or a name with all below it, with or without a dot before it."""
    names = [name.strip().lower().lstrip(".") for name in listed.split(",")]
    return any(name == "*" or (name and f".{host.lower()}".endswith(f".{name}")) for name in names)


def raise_if_passing(answer: Answer) -> None:
    """Raises Interrupted where the status says that another attempt may do better."""
    if answer.status in _TRY_AGAIN:
        said = answer.response.headers.get("Retry-After", "")
        raise Interrupted(f"{answer.origin} answers {answer.status}", float(said) if said.isdecimal() else None)


def _next(here: URL, location: str) -> URL:
    target = here.join(URL(location, encoded=True))
    if target.scheme not in ("http", "https") or not target.host:
        raise FetchFailed(f"{here.origin()} redirects to {target.scheme or 'nowhere'}", hint="try another mirror")
    if here.scheme == "https" and target.scheme != "https":
        raise FetchFailed(
            f"{here.origin()} redirects to {target.origin()}, which is not encrypted", hint="try another mirror"
        )
    return target


def _trust(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if certificate:
        try:
            context.load_verify_locations(certificate)
        except (OSError, ssl.SSLError) as error:
            raise FetchFailed(
                f"the CA file {certificate} cannot be used: {error.strerror or error}",
                hint="name a file of certificates in PEM in MODELYARD_CA_FILE",
            ) from error
    return context


def _translated(error: Exception, url: URL) -> Exception:
    where = str(url.origin())
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Unreachable(
            f"{where} shows a certificate that this machine does not trust",
            hint="name your organisation's CA file in MODELYARD_CA_FILE",
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return Unreachable(
            f"the proxy towards {where} does not let us through: {_in_words(error)}",
            hint="check HTTPS_PROXY, and NO_PROXY for hosts that need none",
        )
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Unreachable(
            f"{where} is out of reach: {_in_words(error)}",
            hint="check the network and HTTPS_PROXY, or name a mirror in HF_ENDPOINT",
        )
    if isinstance(error, aiohttp.InvalidURL):
        return FetchFailed(f"{error} is no URL", hint="check HF_ENDPOINT and the reference")
    if isinstance(error, TimeoutError):
        return Interrupted(f"{where} stopped sending")
    return Interrupted(f"the connection to {where} broke: {_in_words(error)}")


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
