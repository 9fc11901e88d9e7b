"""Spans and metrics at a collector: nothing before it is named, nothing lost while it is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from journal_records import answered, write
from modelyard import settings
from modelyard.clock import SYSTEM
from modelyard.control.exporting import Exporter
from modelyard.observe.metrics import Metrics
from modelyard.settings import Telemetry
from modelyard.state import StateDirectory

Eventually = Callable[..., Awaitable[Any]]


class Collector:
    """What an OpenTelemetry collector is to its senders; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[tuple[str, dict[str, str], Any]] = []
        self.asked = 0

    async def __aenter__(self) -> Collector:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.status == 200:
            self.taken.append((request.path, dict(request.headers), json.loads(await request.read())))
        return web.json_response({}, status=self.status)

    def spans(self) -> list[str]:
        return [
            span["spanId"]
            for path, _, body in self.taken
            if path == "/v1/traces"
            for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"]
            if span["kind"] == 2
        ]


def exporter(state: StateDirectory, collector: Collector) -> Exporter:
    shown = Metrics()
    shown.count([answered(1)])
    telemetry = Telemetry(endpoint=collector.url, headers={"x-key": "k"}, metrics_every_s=0.05)
    return Exporter(state, telemetry, lambda: shown, SYSTEM)


async def test_spans_go_on_where_they_were_acknowledged_and_wait_for_a_collector_that_is_busy(
    state: StateDirectory, eventually: Eventually, monkeypatch: Any
) -> None:
    monkeypatch.setattr("modelyard.control.exporting.READ_EVERY_S", 0.02)
    monkeypatch.setattr("modelyard.control.exporting.RETRY_FROM_S", 0.02)
    write(state.journal, answered(1))
    async with Collector() as collector:
        collector.status = 503
        task = asyncio.create_task(exporter(state, collector).spans_forever())
        await asyncio.sleep(0)
        write(state.journal, answered(2))
        await eventually(lambda: collector.asked > 1, what="it is asked again")
        collector.status = 200
        await eventually(lambda: collector.spans() == ["0a1b2c3d00000002"], what="what came before it is not sent")
        await eventually(state.exported.exists)
        task.cancel()
        write(state.journal, answered(3))
        task = asyncio.create_task(exporter(state, collector).spans_forever())
        await eventually(lambda: collector.spans()[1:] == ["0a1b2c3d00000003"])
        task.cancel()
        assert collector.taken[0][1]["x-key"] == "k"


async def test_metrics_come_by_themselves(state: StateDirectory, eventually: Eventually) -> None:
    async with Collector() as collector:
        task = asyncio.create_task(exporter(state, collector).metrics_forever())
        await eventually(lambda: any(path == "/v1/metrics" for path, _, _ in collector.taken))
        task.cancel()


def test_a_collector_is_named_by_opentelemetrys_own_variables(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert settings.load(home).telemetry.endpoint == ""
    named = {
        **home,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318/",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=a,deployment.environment=test",
        "OTEL_SERVICE_NAME": "b",
    }
    found = settings.load(named).telemetry
    assert (found.endpoint, found.headers) == ("http://127.0.0.1:4318", {"authorization": "Bearer x"})
    assert found.resource == {"service.name": "b", "deployment.environment": "test"}
    assert "Bearer" not in repr(found)
    assert settings.load({**named, "OTEL_SDK_DISABLED": "true"}).telemetry.endpoint == ""
