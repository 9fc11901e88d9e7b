"""The admin API of a running yard: locked to the last route, and saying what is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families

from modelyard.clock import SYSTEM
from modelyard.control.api import make_app
from modelyard.control.audit_log import AuditLog
from modelyard.control.debugging import DebugWindows
from modelyard.control.fleet import Fleet
from modelyard.control.key_log import KeyWriter
from modelyard.control.measurements import Measurements
from modelyard.control.publisher import Publisher
from modelyard.control.replica_loop import Surroundings
from modelyard.hardware.machine import probe
from modelyard.observe.audit import entries, verify_chain
from modelyard.state import StateDirectory
from yards import RunningYard, fake_wanted, running_yard

Eventually = Callable[..., Awaitable[Any]]


async def routes_of(state: StateDirectory) -> list[tuple[str, str]]:
    """Every (method, path) that the application has, from the application itself."""
    around = Surroundings(state, probe(), SYSTEM, Publisher(state), rendezvous="", lease_s=5.0)
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(around, tasks)
        audit = AuditLog(state, SYSTEM)
        windows = DebugWindows(state, around.publisher, audit, SYSTEM)
        seen = Measurements(state, fleet, SYSTEM)
        app = make_app(state, "key", fleet, KeyWriter(state, SYSTEM), seen, audit, windows)
    return sorted((method, path) for method, path in _routes(app.routes))


def _routes(routes: Any) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in route.methods)
        else:
            inner = getattr(getattr(route, "original_router", None), "routes", ())
            yield from _routes(inner)


async def call(yard: RunningYard, method: str, path: str, **headers: str) -> tuple[int, Any]:
    async with yard.http.request(method, f"{yard.listening.admin}{path}", headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_every_route_but_health_is_locked(state: StateDirectory) -> None:
    routes = await routes_of(state)
    assert ("GET", "/health") in routes and len(routes) >= 11
    async with running_yard(state) as yard:
        await yard.admin("GET", "/deployments")
        for method, path in routes:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic a2V5"}):
                status, body = await call(yard, method, path.replace("{", "").replace("}", ""), **headers)
                if path == "/health":
                    assert (status, body["status"]) == (200, "ok")
                else:
                    assert (status, body["error"]["message"]) == (401, "the admin key is needed"), (method, path)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "169.254.169.254:1", ""])
async def test_a_name_that_a_web_page_could_use_is_not_served(state: StateDirectory, host: str) -> None:
    async with running_yard(state) as yard:
        await yard.admin("GET", "/deployments")
        key = state.admin_key.read_text().strip()
        for path in ("/health", "/deployments"):
            status, body = await call(yard, "GET", path, host=host, authorization=f"Bearer {key}")
            assert (status, body["error"]["message"]) == (421, "this host is not served here")
        for served in ("localhost", "127.0.0.1:1234", "[::1]:80", "localhost:9"):
            assert (await call(yard, "GET", "/health", host=served))[0] == 200


async def test_no_page_describes_the_api_to_strangers(state: StateDirectory) -> None:
    async with running_yard(state) as yard:
        await yard.admin("GET", "/deployments")
        for path in ("/docs", "/redoc", "/openapi.json", "/"):
            status, body = await call(yard, "GET", path)
            assert (status, body) == (404, {"error": {"message": "Not Found", "hint": ""}})


async def test_what_is_asked_wrongly_is_named(state: StateDirectory) -> None:
    async with running_yard(state) as yard:
        for body, where in (({}, "name"), ({"name": "x" * 129}, "name"), ({"name": "a", "ttl_s": 0}, "ttl_s")):
            status, answer = await yard.admin("POST", "/keys", body)
            assert status == 400
            assert f"body.{where}" in answer["error"]["message"]
        for method, path in (
            ("GET", "/deployments/no"),
            ("DELETE", "/deployments/no"),
            ("POST", "/deployments/no/reload"),
            ("POST", "/deployments/no/restart"),
            ("POST", "/deployments/no/verify"),
        ):
            status, answer = await yard.admin(method, path)
            assert (status, answer["error"]["message"]) == (404, "there is no deployment 'no'")
        status, answer = await yard.admin("DELETE", "/keys/nope")
        assert (status, answer["error"]["hint"]) == (404, "modelyard keys list")


async def test_a_deployment_that_is_not_ready_cannot_be_verified(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(startup_s=30.0)) as yard:
        status, answer = await yard.admin("POST", "/deployments/small/verify")
        assert (status, answer["error"]["message"]) == (409, "no replica of 'small' is ready")


async def test_keys_open_and_close_the_gateway(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(), fake_wanted("other")) as yard:
        await yard.open()
        await yard.open("other")
        assert (await yard.ask())[0] == 401
        _, parent = await yard.admin("POST", "/keys", {"name": "team"})
        body = {"name": "member", "parent": parent["id"], "deployments": ["small"], "ttl_s": 3600}
        _, child = await yard.admin("POST", "/keys", body)
        yard.key = child["key"]
        assert (await yard.ask())[0] == 200, "a key that was shown works at once"
        assert (await yard.ask(model="other"))[0] == 404
        status, answer = await yard.admin("POST", "/keys", {"name": "more", "parent": child["id"]})
        assert status == 404 and "a key never reaches further than its parent" in answer["error"]["message"]
        assert (await yard.admin("DELETE", f"/keys/{parent['id']}"))[0] == 200

        async def is_refused() -> bool:
            return (await yard.ask())[0] == 401

        await eventually(is_refused, within_s=1.0, what="the child ends with its parent within a second")
        _, keys = await yard.admin("GET", "/keys")
        assert [one["name"] for one in keys] == ["team", "member"]
        assert keys[0]["revoked_at"] is not None
        assert parent["key"] not in str(keys) and "sha256" not in str(keys)


async def test_whatever_is_changed_stands_in_the_audit_log_with_who_did_it(state: StateDirectory) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.open()
        _, made = await yard.admin("POST", "/keys", {"name": "team"})
        await yard.admin("DELETE", f"/keys/{made['id']}")
        await yard.admin("DELETE", "/keys/nope")
        await yard.admin("POST", "/deployments/small/reload")
        await yard.admin("GET", "/deployments")
        await call(yard, "DELETE", "/deployments/small", authorization="Bearer wrong")
        key = state.admin_key.read_text().strip()
        await call(yard, "DELETE", "/deployments/no", authorization=f"Bearer {key}", **{"x-modelyard-user": "eve\t"})
        noted = entries(state.audit)
        assert [(one.action, one.subject, one.details["status"]) for one in noted] == [
            ("keys.create", made["id"], "200"),
            ("keys.remove", made["id"], "200"),
            ("keys.remove", "nope", "404"),
            ("deployments.reload", "small", "200"),
            ("deployments.remove", "no", "404"),
        ]
        assert noted[0].details["name"] == "team" and len(noted[3].details["wanted_sha256"]) == 64
        assert {one.by for one in noted} == {"admin"}
        assert verify_chain(state.audit).broken_at is None
        assert made["key"] not in state.audit.read_text()


async def test_metrics_are_what_the_journal_holds_also_after_control_died(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        for _ in range(5):
            assert (await yard.ask())[0] == 200
        assert (await yard.ask(model="nobody"))[0] == 404

        async def counted() -> dict[tuple[str, str], float] | None:
            found = await requests_of(yard)
            return found if sum(found.values()) >= 6 else None

        expected = {("complete", "200"): 5.0, ("refused", "404"): 1.0}
        assert await eventually(counted) == expected
        assert len(yard.journal()) == 6
        control = yard.child("control")
        os.kill(control, signal.SIGKILL)
        await eventually(lambda: yard.child("control") not in (0, control))
        assert await eventually(counted) == expected, "counted from the journal again, nothing twice"
        samples = await samples_of(yard)
        tokens = [s.value for s in samples if s.name == "modelyard_completion_tokens_total"]
        assert sum(tokens) == sum(one.completion_tokens for one in yard.journal()) == 40
        states = {s.labels["state"]: s.value for s in samples if s.name == "modelyard_replica_state"}
        assert states == {"ready": 1.0}


async def samples_of(yard: RunningYard) -> list[Any]:
    key = yard.state.admin_key.read_text().strip()
    headers = {"authorization": f"Bearer {key}"}
    async with yard.http.get(f"{yard.listening.admin}/metrics", headers=headers) as answer:
        assert answer.content_type == "text/plain"
        text = await answer.text()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def requests_of(yard: RunningYard) -> dict[tuple[str, str], float]:
    await yard.admin("GET", "/deployments")  # control answers
    found: dict[tuple[str, str], float] = {}
    for sample in await samples_of(yard):
        if sample.name == "modelyard_requests_total":
            at = (sample.labels["outcome"], sample.labels["code"])
            found[at] = found.get(at, 0.0) + sample.value
    return found


async def test_a_debug_window_is_opened_for_a_reason_seen_and_closed(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        assert (await yard.ask())[0] == 200
        assert not state.debug.exists()
        for body in ({"for_s": 60}, {"for_s": 60, "reason": ""}, {"for_s": 1e9, "reason": "why"}):
            assert (await yard.admin("POST", "/deployments/small/debug", body))[0] == 400
        _, window = await yard.admin("POST", "/deployments/small/debug", {"for_s": 60, "reason": "garbled answers"})
        _, view = await yard.admin("GET", "/deployments/small")
        assert view["debug_until"] == window["until"]

        async def is_heard() -> bool:
            await yard.ask()
            return state.debug.exists()

        await eventually(is_heard, what="the gateway writes what is said")
        assert (await yard.admin("DELETE", "/deployments/small/debug"))[0] == 200
        assert (await yard.admin("GET", "/deployments/small"))[1].get("debug_until", 0.0) == 0.0
        debug = [one for one in entries(state.audit) if one.action.startswith("debug.")]
        assert [one.action for one in debug] == ["debug.open", "debug.close"]
        assert debug[0].details["reason"] == "garbled answers"
        assert [one.action for one in entries(state.audit)].count("deployments.debug") == 3, "those that were refused"
