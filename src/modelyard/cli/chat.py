"""`modelyard chat`: talk to a deployment in the terminal, through the gateway like any client."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import typer

from modelyard.cli.admin import Admin, running, state_directory
from modelyard.cli.keys import MadeKey
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, complain, print_json, say
from modelyard.control.views import DeploymentView
from modelyard.errors import EngineFailed, ModelyardError, NotRunning, UsageError
from modelyard.records.listening import Listening

KEY_TTL_S = 12 * 3600.0
TIMEOUT_S = 600.0
_STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def chat(
    name: Annotated[str | None, typer.Argument(help="A deployment; the only one if left out.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="0 always takes the likeliest token; the deployment's if left out."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    json: Json = False,
) -> None:
    """Talk to a deployment; answers stream. Ctrl-C stops an answer, Ctrl-D (or /quit) ends."""
    if json and message is None:
        raise UsageError("--json needs --message", hint="modelyard chat --json -m 'Hello'")
    state = state_directory()
    where = running(state)
    admin = Admin(state)
    deployment = _chosen(admin, name)
    with _own_key(admin, deployment) as key:
        talk = Talk(where, key, deployment, temperature, max_tokens, system)
        if message is None:
            _converse(talk)
            return
        answer = talk.ask(message, quietly=json)
        if json:
            print_json({"deployment": deployment, "answer": answer})


@contextlib.contextmanager
def _own_key(admin: Admin, deployment: str) -> Generator[str]:
    """A key for this deployment and this conversation: of the stored ones only hashes are known. Should it not come to
    its revocation, it ends by itself."""
    body = {"name": f"chat {deployment}", "ttl_s": KEY_TTL_S, "deployments": [deployment]}
    made = admin.post("/keys", MadeKey, body)
    try:
        yield made.key
    finally:
        with contextlib.suppress(ModelyardError):
            admin.delete(f"/keys/{made.id}", dict[str, str])


def _chosen(admin: Admin, name: str | None) -> str:
    names = [view.name for view in admin.get("/deployments", list[DeploymentView])]
    if not names:
        raise NotRunning("nothing is being served from here", hint="modelyard up")
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    message = "which deployment?" if name is None else f"there is no deployment {name!r}"
    raise UsageError(message, hint=" or ".join(f"modelyard chat {one}" for one in names))


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
            try:
                talk.ask(text)
            except EngineFailed as error:
                # The next question may well be answered: engines are started again.
                complain(error.message, error.hint)


@dataclass(slots=True)
class Heard:
    """An answer as it comes; `tokens` is the engine's own count, 0 until it is told."""

    quietly: bool
    pieces: list[str] = field(default_factory=list[str])
    tokens: int = 0


class Talk:
    """A conversation: its messages so far, and how to ask for the next."""

    def __init__(
        self,
        where: Listening,
        key: str,
        deployment: str,
        temperature: float | None,
        max_tokens: int,
        system: str | None,
    ) -> None:
        self.deployment = deployment
        self._where, self._key = where, key
        self._settings: dict[str, Any] = {"max_tokens": max_tokens}
        if temperature is not None:
            self._settings["temperature"] = temperature
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, *, quietly: bool = False) -> str:
        """The answer, printed as it comes unless `quietly`. Interrupted, it stays as far as it came."""
        question = {"role": "user", "content": text}
        heard = Heard(quietly)
        began = time.monotonic()
        try:
            asyncio.run(self._stream([*self._messages, question], heard))
        except KeyboardInterrupt:
            if not quietly:
                OUT.print(" [dim](stopped)[/dim]", end="")
        answer = "".join(heard.pieces)
        self._messages += [question, {"role": "assistant", "content": answer}]
        if not quietly:
            say("")
            if heard.tokens:
                speed = heard.tokens / (time.monotonic() - began)
                OUT.print(f"[dim]{heard.tokens} tokens, {speed:.0f} per second[/dim]")
        return answer

    async def _stream(self, messages: list[dict[str, str]], heard: Heard) -> None:
        import aiohttp  # only where it is needed: it is slow to import

        body = {"model": self.deployment, "messages": messages, **_STREAMED, **self._settings}
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
                    _take(line, heard)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineFailed("the gateway did not answer to the end", hint="modelyard status") from error


def _trust(where: Listening) -> ssl.SSLContext | bool:
    """Our own listener on this machine: its certificate is for the name that others use."""
    if not where.url.startswith("https"):
        return True
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _take(line: bytes, heard: Heard) -> None:
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return
    event: dict[str, Any] = msgspec.json.decode(line[6:])
    if "error" in event:
        raise EngineFailed(str(event["error"].get("message")), hint="modelyard logs")
    if usage := event.get("usage"):
        heard.tokens = int(usage["completion_tokens"])
    for choice in event.get("choices", []):
        text = choice.get("delta", {}).get("content") or ""
        if text:
            heard.pieces.append(text)
            if not heard.quietly:
                sys.stdout.write(text)
                sys.stdout.flush()


def _message(answer: bytes, status: int) -> str:
    try:
        return str(msgspec.json.decode(answer)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"the gateway answered {status}"
