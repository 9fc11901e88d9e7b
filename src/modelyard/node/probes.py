"""Asking a running engine how it is: over its unix socket or loopback, one question at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from modelyard.clock import Clock
from modelyard.engines.contract import EngineMetrics, LaunchSpec
from modelyard.node.life import Health, ProbeAnswered, WorkSeen

_MAX_METRICS_BYTES = 4 * 1024 * 1024


def open_session(spec: LaunchSpec) -> aiohttp.ClientSession:
    """A session that reaches this engine and nothing else, one request at a time; close it after use."""
    if spec.address.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(spec.address.removeprefix("unix:"), limit=1)
        base_url = "http://engine"
    else:
        connector, base_url = aiohttp.TCPConnector(limit=1), spec.address
    timeout = aiohttp.ClientTimeout(total=spec.probes.health_timeout_s)
    # No proxy from the environment, no cookies: the engine is next door.
    return aiohttp.ClientSession(
        base_url, connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    )


async def probe_health(session: aiohttp.ClientSession, spec: LaunchSpec) -> Health:
    """`ok` for 2xx, `not_ok` for any other answer, `silent` where none came within `health_timeout_s`."""
    try:
        async with session.get(spec.probes.health_path, allow_redirects=False) as response:
            return "ok" if 200 <= response.status < 300 else "not_ok"
    except (aiohttp.ClientError, TimeoutError, OSError):
        return "silent"


async def read_engine_metrics(
    session: aiohttp.ClientSession, spec: LaunchSpec, read_metrics: Callable[[str], EngineMetrics]
) -> EngineMetrics | None:
    """What the engine's metrics say by its adapter's `read_metrics`; None where it has none or does not answer."""
    if spec.probes.metrics_path is None:
        return None
    try:
        async with session.get(spec.probes.metrics_path, allow_redirects=False) as response:
            text = await _text_of(response)
            return None if text is None or response.status != 200 else read_metrics(text)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


async def watch(
    spec: LaunchSpec,
    launch: int,
    read_metrics: Callable[[str], EngineMetrics],
    tell: Callable[[ProbeAnswered | WorkSeen], None],
    every_s: Callable[[], float],
    clock: Clock,
) -> None:
    """Probe launch number `launch` until cancelled, never two probes at once; `every_s` is asked before each pause
    (short while it loads, long while all is well)."""
    async with open_session(spec) as session:
        while True:
            health = await probe_health(session, spec)
            tell(ProbeAnswered(at=clock.monotonic(), launch=launch, health=health))
            # Also where health was silent: only if both are, the engine says nothing.
            seen = await read_engine_metrics(session, spec, read_metrics)
            if seen is not None:
                at = clock.monotonic()
                tell(WorkSeen(at=at, launch=launch, running=seen.running, work_done=seen.work_done))
            await asyncio.sleep(every_s())


async def _text_of(response: aiohttp.ClientResponse) -> str | None:
    """The whole body, or None where it is larger than metrics ever are."""
    body = bytearray()
    async for piece in response.content.iter_chunked(65536):
        body += piece
        if len(body) > _MAX_METRICS_BYTES:
            return None
    return body.decode("utf-8", "replace")
