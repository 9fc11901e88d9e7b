"""The official JavaScript clients of OpenAI and Anthropic, unchanged and locked, before a gateway.

npm installs them once into a cache of the checkout, as their lock says and without running a script of theirs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gateway_child import KEY, Gateway, deployment, replica

from modelyard.records.keys import Limits
from modelyard.records.secrets import public_id
from modelyard.state import open_state
from modelyard.testing import FakeEngine
from needs import missing, wants_program

Eventually = Callable[..., Awaitable[object]]
SOURCE = Path(__file__).parent / "node_clients"
CACHE = Path(__file__).parents[2] / ".cache"
TOKYO = "The capital of Japan is Tokyo."
ONE_AT_ONCE, NEVER_ENOUGH = "my_00000000once_node", "my_0000000never_node"


def installed() -> Path:
    """A folder with the clients that the lock names and the script that uses them."""
    node, npm = wants_program("node", package="nodejs"), wants_program("npm")
    files = [SOURCE / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    folder = CACHE / f"node-clients-{digest}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in files:
            shutil.copy(path, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        if done.returncode:
            missing(f"npm cannot install the clients: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "complete").touch()
    shutil.copy(SOURCE / "scenarios.mjs", folder)
    assert os.access(node, os.X_OK)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(
    tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> AsyncIterator[tuple[dict[str, Any], Gateway]]:
    """What the script found, and the gateway that it found it at."""
    folder = await asyncio.to_thread(installed)
    state = open_state(tmp_path_factory.mktemp("node") / "state")
    async with AsyncExitStack() as stack:
        usual, slow, words, broken = [
            await stack.enter_async_context(FakeEngine(**knobs))
            for knobs in (
                {},
                {"prefill_s": 60},
                {"token_interval_s": 0.05, "tokens": 2000},
                {"truncate_after_tokens": 3},
            )
        ]
        gateway = stack.enter_context(Gateway(state))
        gateway.add_key(ONE_AT_ONCE, limits=Limits(concurrent_requests=1))
        gateway.add_key(NEVER_ENOUGH, limits=Limits(tokens_per_minute=1))
        endpoints = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
        gateway.publish(
            deployment(replica(usual.address), endpoints=endpoints),
            deployment(replica(slow.address), name="slow"),
            deployment(replica(words.address), name="slow-words"),
            deployment(replica(words.address), name="busy"),
            deployment(replica(broken.address), name="broken"),
            deployment(name="closed", open=False, reason="it is starting", retry_after_s=1),
        )

        def is_ready() -> bool:
            with gateway.wire() as wire:
                return wire.ask(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").status == 200

        await eventually(is_ready)
        process = await asyncio.create_subprocess_exec(
            *("node", "scenarios.mjs", str(gateway.port), KEY, ONE_AT_ONCE, NEVER_ENOUGH),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, err.decode()
        yield json.loads(out), gateway


pytestmark = pytest.mark.asyncio(loop_scope="module")
Told = tuple[dict[str, Any], Gateway]


@pytest.mark.parametrize("name", ["chat", "streamedChat", "response", "streamedResponse", "message", "streamedMessage"])
async def test_every_way_to_ask_brings_the_same_answer(told: Told, name: str) -> None:
    assert told[0][name] == TOKYO


async def test_a_text_is_embedded(told: Told) -> None:
    assert told[0]["embedding"] == 16


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("wrongKey", "AuthenticationError", 401),
        ("noModel", "NotFoundError", 404),
        ("badRequest", "BadRequestError", 400),
        ("closed", "InternalServerError", 503),
        ("wrongKeyOfAnthropic", "AuthenticationError", 401),
        ("neverEnough", "RateLimitError", 429),
        ("neverEnoughOfAnthropic", "RateLimitError", 429),
        ("closedOfAnthropic", "ServiceUnavailableError", 503),
    ],
)
async def test_errors_are_typed_and_carry_the_request(told: Told, name: str, kind: str, status: int) -> None:
    assert told[0][name] == {"name": kind, "status": status, "requestID": True}


async def test_a_deadline_is_its_own_error_and_stops_the_engine(told: Told, eventually: Eventually) -> None:
    found, gateway = told
    assert found["late"]["name"] == "APIConnectionTimeoutError"
    await eventually(lambda: [one.outcome for one in gateway.records() if one.deployment == "slow"] == ["client_gone"])


async def test_a_client_that_leaves_stops_the_engine(told: Told, eventually: Eventually) -> None:
    found, gateway = told
    assert found["left"] == "left"
    await eventually(
        lambda: [one.outcome for one in gateway.records() if one.deployment == "slow-words"] == ["client_gone"]
    )


@pytest.mark.parametrize("name", ["broken", "brokenOfAnthropic"])
async def test_a_stream_that_breaks_is_never_a_result(told: Told, name: str) -> None:
    assert told[0][name]["name"] in ("APIError", "OpenAIError", "AnthropicError")


async def test_what_is_unavailable_is_asked_again_as_often_as_the_client_was_told(told: Told) -> None:
    asked = [one for one in told[1].records() if one.deployment == "closed" and one.endpoint.endswith("completions")]
    assert len(asked) == 2 and asked[1].at - asked[0].at >= 1, "Retry-After was honoured"


async def test_a_limit_that_gives_way_soon_is_waited_for_as_long_as_the_client_was_told(told: Told) -> None:
    found, gateway = told
    assert found["askedWhileBusy"] == TOKYO
    asked = [one for one in gateway.records() if one.key_id == public_id(ONE_AT_ONCE) and one.deployment == "m"]
    assert [one.status for one in asked] == [429] * (len(asked) - 1) + [200] and len(asked) > 1
    assert all(later.at - one.at >= 1 for one, later in pairwise(asked)), "Retry-After was honoured"


async def test_what_is_refused_for_good_is_not_asked_again(told: Told) -> None:
    asked = [one for one in told[1].records() if one.key_id == public_id(NEVER_ENOUGH)]
    assert [one.endpoint for one in asked] == ["/v1/chat/completions", "/v1/messages"]
