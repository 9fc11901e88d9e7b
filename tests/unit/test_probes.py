"""Probes against a server that answers what the test says, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from modelyard.clock import Clock
from modelyard.engines.contract import EngineMetrics, LaunchSpec, Probes
from modelyard.node.life import ProbeAnswered, WorkSeen
from modelyard.node.probes import open_session, probe_health, read_engine_metrics, watch


def reply(status: int, body: bytes = b"", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


class Engine:
    """Answers by path; None leaves the question open. Counts what is asked at the same time."""

    def __init__(self, answers: dict[str, bytes | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.open_questions = 0
        self.most_open_questions = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split()[1].decode()
                self.asked.append(path)
                self.open_questions += 1
                self.most_open_questions = max(self.most_open_questions, self.open_questions)
                answer = self.answers[path]
                if answer is None:
                    await reader.read()
                    return
                writer.write(answer)
                self.open_questions -= 1
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(engine: Engine, path: Path) -> AsyncIterator[LaunchSpec]:
    server = await asyncio.start_unix_server(engine.serve, path)
    async with server:
        yield spec_of(f"unix:{path}")


def spec_of(address: str, timeout_s: float = 5.0) -> LaunchSpec:
    probes = Probes(health_path="/health", metrics_path="/metrics", health_timeout_s=timeout_s)
    return LaunchSpec(argv=(), environ={}, cwd="/", files={}, address=address, probes=probes, effective={})


def read_metrics(text: str) -> EngineMetrics:
    running, work = text.split()
    return EngineMetrics(running=float(running), work_done=float(work))


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (reply(200, b"ok"), "ok"),
        (reply(503, b"loading"), "not_ok"),
        (reply(302, headers="location: /health\r\n"), "not_ok"),
        (b"SSH-2.0-nonsense\r\n\r\n", "silent"),
        (b"", "silent"),
    ],
)
async def test_health_tells_a_good_answer_a_bad_one_and_none_apart(tmp_path: Path, answer: bytes, health: str) -> None:
    engine = Engine({"/health": answer or None})
    async with serving(engine, tmp_path / "e.sock") as spec:
        spec = msgspec.structs.replace(spec, probes=msgspec.structs.replace(spec.probes, health_timeout_s=0.2))
        async with open_session(spec) as session:
            assert await probe_health(session, spec) == health


@pytest.mark.parametrize("address", ["unix:/no/such.sock", "http://127.0.0.1:1"])
async def test_an_engine_that_does_not_listen_yet_is_silent(address: str) -> None:
    spec = spec_of(address)
    async with open_session(spec) as session:
        assert await probe_health(session, spec) == "silent"
        assert await read_engine_metrics(session, spec, read_metrics) is None


async def test_metrics_are_read_by_the_adapter(tmp_path: Path) -> None:
    engine = Engine({"/metrics": reply(200, b"2 77")})
    async with serving(engine, tmp_path / "e.sock") as spec, open_session(spec) as session:
        assert await read_engine_metrics(session, spec, read_metrics) == EngineMetrics(running=2.0, work_done=77.0)


async def test_metrics_that_are_refused_or_endless_are_absent(tmp_path: Path) -> None:
    engine = Engine({"/metrics": reply(500, b"2 77")})
    async with serving(engine, tmp_path / "e.sock") as spec, open_session(spec) as session:
        assert await read_engine_metrics(session, spec, read_metrics) is None
        engine.answers["/metrics"] = reply(200, b"1 2\n" * 1_500_000)
        assert await read_engine_metrics(session, spec, read_metrics) is None
    spec = msgspec.structs.replace(spec, probes=Probes(health_path="/health", metrics_path=None))
    async with open_session(spec) as session:
        assert await read_engine_metrics(session, spec, read_metrics) is None


async def test_a_watch_never_has_two_questions_open(tmp_path: Path, eventually: Callable[..., object]) -> None:
    told: list[ProbeAnswered | WorkSeen] = []
    engine = Engine({"/health": reply(200), "/metrics": reply(200, b"1 5")})
    async with serving(engine, tmp_path / "e.sock") as spec:
        clock = Clock(monotonic=lambda: 7.0)
        watching = asyncio.create_task(watch(spec, 3, read_metrics, told.append, lambda: 0.0, clock))
        await eventually(lambda: len(told) >= 6)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert told[:2] == [
        ProbeAnswered(at=7.0, launch=3, health="ok"),
        WorkSeen(at=7.0, launch=3, running=1.0, work_done=5.0),
    ]
    assert engine.most_open_questions == 1
    assert engine.asked[:4] == ["/health", "/metrics", "/health", "/metrics"]


async def test_metrics_are_asked_also_where_health_is_silent(tmp_path: Path, eventually: Callable[..., object]) -> None:
    told: list[ProbeAnswered | WorkSeen] = []
    engine = Engine({"/health": None, "/metrics": reply(200, b"1 5")})
    async with serving(engine, tmp_path / "e.sock") as spec:
        spec = msgspec.structs.replace(spec, probes=msgspec.structs.replace(spec.probes, health_timeout_s=0.2))
        watching = asyncio.create_task(watch(spec, 3, read_metrics, told.append, lambda: 0.0, Clock()))
        await eventually(lambda: len(told) >= 2)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert isinstance(told[0], ProbeAnswered)
    assert told[0].health == "silent"
    assert isinstance(told[1], WorkSeen)
