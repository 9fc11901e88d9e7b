"""The command line's view of a running yard: the admin API, found through the state directory."""

from __future__ import annotations

import asyncio
import os
import pwd
from typing import Any, TypeVar

import msgspec

from modelyard import settings
from modelyard.errors import ModelyardError, NotRunning, UsageError
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.listening import Gateways, Listening
from modelyard.state import StateDirectory, admin_key, is_locked, open_state

T = TypeVar("T")
TIMEOUT_S = 120.0
# Control is started again at once when it dies; a command need not fail for that moment.
PATIENCE_S = 5.0


def state_directory() -> StateDirectory:
    return open_state(settings.load().state_dir)


def listening(state: StateDirectory) -> Listening | None:
    """Where the yard of this state directory listens; None where none runs."""
    try:
        found = decode(state.yard.read_bytes(), Listening)
    except (FileNotFoundError, UnreadableRecord):
        return None
    return found if is_locked(state.yard_lock) else None


def gateways(state: StateDirectory) -> Gateways | None:
    """The gateway's processes, as yard last said; None where it has said nothing yet."""
    try:
        return decode(state.gateways.read_bytes(), Gateways)
    except (FileNotFoundError, UnreadableRecord):
        return None


def running(state: StateDirectory) -> Listening:
    """Raises NotRunning."""
    found = listening(state)
    if found is None:
        raise NotRunning("nothing is being served from here", hint="modelyard up")
    return found


class Admin:
    """Calls the admin API of a running yard. Errors of the API are raised as ours."""

    def __init__(self, state: StateDirectory) -> None:
        self._base = running(state).admin
        self._key = admin_key(state)

    def get(self, path: str, kind: type[T]) -> T:
        return asyncio.run(self.call("GET", path, kind))

    def post(self, path: str, kind: type[T], body: object = None) -> T:
        return asyncio.run(self.call("POST", path, kind, body))

    def patch(self, path: str, kind: type[T], body: object) -> T:
        return asyncio.run(self.call("PATCH", path, kind, body))

    def delete(self, path: str, kind: type[T]) -> T:
        return asyncio.run(self.call("DELETE", path, kind))

    async def call(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        """One call; where nobody answers, again for a few seconds. Raises NotRunning or what the API refused."""
        import aiohttp  # a third of a second that --help and most errors need not wait for

        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        while True:
            try:
                return await self._once(method, path, kind, body)
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                if loop.time() > deadline:
                    raise NotRunning("control does not answer", hint="modelyard logs --control") from error
            await asyncio.sleep(0.1)

    async def _once(self, method: str, path: str, kind: type[T], body: object) -> T:
        import aiohttp

        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        headers["x-modelyard-user"] = _user()
        data = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(self._base, timeout=timeout, trust_env=False) as session,
            session.request(method, path, headers=headers, data=data) as response,
        ):
            answer = await response.read()
        if response.status != 200:
            raise _refused(response.status, answer)
        return decode(answer, kind) if kind is not bytes else answer  # type: ignore[return-value]


def _user() -> str:
    """For the audit log: who types this, as far as the machine knows a name for them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"


def _refused(status: int, answer: bytes) -> ModelyardError:
    try:
        error: dict[str, Any] = msgspec.json.decode(answer)["error"]
        message, hint = str(error["message"]), str(error.get("hint") or "modelyard logs --control")
    except (msgspec.MsgspecError, KeyError, TypeError):
        message, hint = f"the admin API answered {status}", "modelyard logs --control"
    if status == 404:
        return UsageError(message, hint=hint)
    return NotRunning(message, hint=hint) if status == 409 else ModelyardError(message, hint=hint)


def signal_yard(state: StateDirectory, number: int) -> None:
    """Signal the yard of this state directory; its lock, still held, vouches that the number is still its own."""
    os.kill(running(state).pid, number)
