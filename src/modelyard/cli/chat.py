"""`modelyard chat`: talk to a deployment in the terminal, through the gateway like any client."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from modelyard.cli.admin import Admin, running, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.control.views import DeploymentView
from modelyard.errors import EngineFailed, NotRunning, UsageError
from modelyard.records.base import Record
from modelyard.records.listening import Listening

KEY_TTL_S = 12 * 3600.0
TIMEOUT_S = 600.0


class _Key(Record, kw_only=True):
    key: str


def chat(
    name: Annotated[str | None, typer.Argument(help="A deployment; the only one if left out.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    json: Json = False,
) -> None:
    """Talk to a deployment; answers stream. Ctrl-C stops an answer, Ctrl-D (or /quit) ends."""
    state = state_directory()
    where = running(state)
    admin = Admin(state)
    deployment = name or _only(admin)
    body = {"name": f"chat {deployment}", "ttl_s": KEY_TTL_S, "deployments": [deployment]}
    # A key of its own, for this deployment and twelve hours: the stored keys are only hashes.
    key = admin.post("/keys", _Key, body).key
    talk = Talk(where, key, deployment, temperature, max_tokens, system)
    if message is not None:
        answer = talk.ask(message, quietly=json)
        if json:
            print_json({"deployment": deployment, "answer": answer})
    elif json:
        raise UsageError("--json needs --message", hint="modelyard chat --json -m 'Hello'")
    else:
        _converse(talk)


def _only(admin: Admin) -> str:
    views = admin.get("/deployments", list[DeploymentView])
    if len(views) == 1:
        return views[0].name
    if not views:
        raise NotRunning("nothing is being served from here", hint="modelyard up")
    raise UsageError("which deployment?", hint=" or ".join(f"modelyard chat {view.name}" for view in views))


def _converse(talk: Talk) -> None:
    say(f"talking to {talk.deployment}; Ctrl-C stops an answer, Ctrl-D ends")
    while True:
        try:
            text = OUT.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        if text in ("/quit", "/exit"):
            return
        if text:
            talk.ask(text)


class Talk:
    """A conversation: its messages so far, and how to ask for the next."""

    def __init__(
        self, where: Listening, key: str, deployment: str, temperature: float, max_tokens: int, system: str | None
    ) -> None:
        self.deployment = deployment
        self._where, self._key = where, key
        self._settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, *, quietly: bool = False) -> str:
        """The answer, printed as it comes unless `quietly`. Interrupted, it stays as far as it came."""
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        began = time.monotonic()
        try:
            asyncio.run(self._stream(pieces, quietly))
        except KeyboardInterrupt:
            if not quietly:
                OUT.print(" [dim](stopped)[/dim]", end="")
        answer = "".join(pieces)
        self._messages.append({"role": "assistant", "content": answer})
        if not quietly:
            say("")
            OUT.print(f"[dim]{len(pieces)} pieces, {len(pieces) / (time.monotonic() - began):.0f} per second[/dim]")
        return answer

    async def _stream(self, pieces: list[str], quietly: bool) -> None:
        import aiohttp  # only where it is needed: it is slow to import

        body = {"model": self.deployment, "messages": self._messages, "stream": True, **self._settings}
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.post(
                    f"{self._where.url}/chat/completions",
                    headers=headers,
                    data=msgspec.json.encode(body),
                    ssl=_trust(self._where),
                ) as response,
            ):
                if response.status != 200:
                    raise EngineFailed(_message(await response.read(), response.status), hint="modelyard status")
                async for line in response.content:
                    _take(line, pieces, quietly)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineFailed("the gateway did not answer to the end", hint="modelyard status") from error


def _trust(where: Listening) -> ssl.SSLContext | bool:
    """Our own listener on this machine: its certificate is for the name that others use."""
    if not where.url.startswith("https"):
        return True
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _take(line: bytes, pieces: list[str], quietly: bool) -> None:
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return
    event: dict[str, Any] = msgspec.json.decode(line[6:])
    if "error" in event:
        raise EngineFailed(str(event["error"].get("message")), hint="modelyard logs")
    for choice in event.get("choices", []):
        text = choice.get("delta", {}).get("content") or ""
        if text:
            pieces.append(text)
            if not quietly:
                sys.stdout.write(text)
                sys.stdout.flush()


def _message(answer: bytes, status: int) -> str:
    try:
        return str(msgspec.json.decode(answer)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"the gateway answered {status}"
