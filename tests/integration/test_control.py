"""Control as a process between yard and shims: it may die, its engines may; what is wanted is served all the same."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from modelyard.control import wanted as desired
from modelyard.state import StateDirectory
from yards import RunningYard, engine_pids, fake_wanted, processes_of, running_yard, words_of

Eventually = Callable[..., Awaitable[Any]]


async def kill_control(yard: RunningYard, eventually: Eventually) -> None:
    old = yard.child("control")
    os.kill(old, signal.SIGKILL)
    await eventually(lambda: yard.child("control") not in (0, old), what="a new control")


async def test_a_killed_control_adopts_its_engines_and_no_request_notices(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(replicas=2)) as yard:
        await yard.make_key()
        await yard.open()
        await eventually(lambda: len(yard.route().replicas) == 2)
        before, engines = yard.topology(), engine_pids(state)
        await yard.turn(token_interval_s=0.02)
        async with yard.chat(stream=True, max_tokens=60) as answer:
            await kill_control(yard, eventually)
            assert (await yard.ask())[0] == 200
            text, done = await words_of(answer)
        assert done and len(text.split()) == 60
        view = await yard.open()
        assert engine_pids(state) == engines
        assert [one.phase for one in view.replicas] == ["ready", "ready"]
        assert {one.launch for one in view.replicas} == {one.launch for one in before.deployments[0].replicas}
        assert yard.topology().generation >= before.generation
        assert yard.route() == before.deployments[0], "the routes stay as they were"
        assert (await yard.ask())[0] == 200


async def test_an_adopted_engine_is_watched_and_restarted_like_any_other(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        [engine] = engine_pids(state)
        await kill_control(yard, eventually)
        assert (await yard.view()).open
        os.kill(engine, signal.SIGKILL)
        await eventually(lambda: (now := engine_pids(state)) and now != [engine])
        await yard.open()
        assert (await yard.ask())[0] == 200


async def test_an_engine_that_died_while_control_was_away_is_started_again(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        launch = (await yard.open()).replicas[0].launch
        shims = [pid for pid, command in processes_of(state).items() if "modelyard.node.shim" in command]
        control = yard.child("control")
        os.kill(control, signal.SIGSTOP)
        for shim in shims:
            os.kill(shim, signal.SIGKILL)
        await eventually(lambda: not engine_pids(state), what="the engine ends with its shim")
        os.kill(control, signal.SIGKILL)
        await eventually(lambda: yard.child("control") not in (0, control))

        async def is_another() -> bool:
            return (await yard.replica()).launch not in ("", launch)

        await eventually(is_another)
        view = await yard.open()
        assert (await yard.ask())[0] == 200
        assert [path.name for path in state.launches.glob("*.json")] == [f"small-0-{view.replicas[0].launch}.json"]


async def test_a_deployment_that_nobody_wants_any_more_is_ended_by_the_next_control(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted("kept"), fake_wanted("gone")) as yard:
        await yard.make_key()
        await yard.open("kept")
        await yard.open("gone")
        assert len(engine_pids(state)) == 2
        desired.remove(state, "gone")
        await kill_control(yard, eventually)
        await eventually(lambda: [one.name for one in yard.topology().deployments] == ["kept"])
        await eventually(lambda: len(engine_pids(state)) == 1, what="its engine ends")
        assert (await yard.admin("GET", "/deployments/gone"))[0] == 404
        await yard.gateway_follows()
        assert (await yard.ask(model="kept"))[0] == 200
        assert (await yard.ask(model="gone"))[0] == 404


async def test_what_was_planned_anew_while_control_was_away_is_not_adopted(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(tokens=50)) as yard:
        await yard.make_key()
        await yard.open()
        [engine] = engine_pids(state)
        desired.save(state, fake_wanted(tokens=70))
        await kill_control(yard, eventually)
        await eventually(lambda: engine not in engine_pids(state))
        await yard.open()
        _, answer = await yard.ask(max_tokens=100)
        assert answer["usage"]["completion_tokens"] == 70


async def test_a_damaged_file_keeps_one_deployment_from_being_served_not_all(
    state: StateDirectory, eventually: Eventually
) -> None:
    (state.deployments / "broken.json").write_text('{"schema":"wanted/v99"}')
    async with running_yard(state, fake_wanted()) as yard:
        await yard.open()
        assert (await yard.admin("GET", "/deployments/broken"))[0] == 404
        assert "deployment 'broken' is not served" in yard.log("control")


async def test_an_engine_that_crashes_comes_back_and_its_clients_are_told_to_wait(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(startup_s=0.5)) as yard:
        await yard.make_key()
        first = (await yard.open()).replicas[0].launch
        await yard.turn(crash_after_tokens=2)
        await yard.ask()
        await eventually(lambda: not yard.route().open)
        await yard.gateway_follows()
        async with yard.chat() as answer:
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
        view = await yard.open()
        assert view.replicas[0].launch > first
        assert "exit code 1" in view.replicas[0].cause
        assert (await yard.ask())[0] == 200


async def test_a_crash_loop_is_given_up_and_an_operator_may_try_again(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(crash_at_start="crash")) as yard:
        failed = await failed_replica(yard, eventually)
        assert failed.cause.startswith("crash loop: 5 starts in 10 min")
        assert "the device went away" in failed.cause
        first = int((await yard.view()).steps[-1].number)
        assert (await yard.admin("POST", "/deployments/small/restart"))[0] == 200
        await eventually(lambda: engine_pids(state), what="it is tried again")
        assert (await yard.view()).steps[-1].number > first


async def failed_replica(yard: RunningYard, eventually: Eventually) -> Any:
    async def found() -> Any:
        replica = await yard.replica()
        return replica if replica.phase == "failed" else None

    return await eventually(found, within_s=60)


async def test_a_setting_that_does_not_exist_fails_for_good_with_cause_and_log(
    state: StateDirectory, eventually: Eventually
) -> None:
    wanted = fake_wanted(load_log_lines="\n".join(f"line {number}" for number in range(80)), crash_at_start="bad-flag")
    async with running_yard(state, wanted) as yard:
        await yard.make_key()
        failed = await failed_replica(yard, eventually)
        assert failed.permanent
        assert failed.cause == "unknown setting: --kv-cash-dtype"
        assert failed.fix == "correct the setting in the deployment"
        assert len(failed.tail) == 50
        assert failed.tail[-1] == "error: unknown setting: --kv-cash-dtype"
        assert not engine_pids(state)
        await yard.gateway_follows()
        status, answer = await yard.ask()
        assert status == 503
        assert "unknown setting: --kv-cash-dtype" in answer["error"]["message"]


async def test_an_engine_that_hangs_behind_a_healthy_face_is_killed_and_started_again(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(hang_timeout_s=3.0)) as yard:
        await yard.make_key()
        first = (await yard.open()).replicas[0].launch
        await yard.turn(hang_after_tokens=2)
        asked = asyncio.create_task(yard.ask(max_tokens=50))

        async def started_again() -> bool:
            return (await yard.replica()).launch not in ("", first)

        await eventually(started_again, within_s=30)
        view = await yard.open()
        assert view.replicas[0].cause.startswith("the engine hangs: 1 requests run and no token was processed for")
        status, answer = await asked
        assert status in (502, 503), answer
        assert (await yard.ask())[0] == 200


async def test_a_restart_waits_for_the_answers_that_are_on_their_way(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(tokens=200)) as yard:
        await yard.make_key()
        first = (await yard.open()).replicas[0].launch
        await yard.turn(token_interval_s=0.02)
        async with yard.chat(stream=True, max_tokens=100) as answer:
            restart = asyncio.create_task(yard.admin("POST", "/deployments/small/restart"))
            await eventually(lambda: not yard.route().open)
            await yard.gateway_follows()
            assert (await yard.ask())[0] == 503
            text, done = await words_of(answer)
        assert done and len(text.split()) == 100
        assert (await restart)[0] == 200
        assert (await yard.open()).replicas[0].launch > first


async def test_replicas_restart_one_after_the_other_and_the_route_stays_open(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(replicas=2)) as yard:
        await yard.make_key()
        await yard.open()
        await eventually(lambda: len(yard.route().replicas) == 2)
        before = {one.launch for one in yard.route().replicas}
        restart = asyncio.create_task(yard.admin("POST", "/deployments/small/restart"))
        codes: set[int] = set()
        while not restart.done():
            codes.add((await yard.ask())[0])
        assert codes == {200}
        assert (await restart)[0] == 200
        await eventually(lambda: len(yard.route().replicas) == 2)
        assert before.isdisjoint(one.launch for one in yard.route().replicas)


async def test_a_removed_deployment_finishes_its_answers_and_is_forgotten(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(tokens=200)) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.02)
        async with yard.chat(stream=True, max_tokens=100) as answer:
            removal = asyncio.create_task(yard.admin("DELETE", "/deployments/small"))
            again = asyncio.create_task(yard.admin("DELETE", "/deployments/small"))
            text, done = await words_of(answer)
        assert done and len(text.split()) == 100
        assert (await removal)[0] == 200
        assert (await again)[0] == 404, "the second one finds nothing left to remove"
        assert not engine_pids(state)
        assert yard.topology().deployments == ()
        assert desired.names(state) == ()
        assert (await yard.admin("GET", "/deployments"))[1] == []


async def test_a_drain_ends_when_its_time_is_over(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(tokens=4000, drain_timeout_s=0.5)) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.05)
        async with yard.chat(stream=True, max_tokens=4000) as answer:
            assert (await yard.admin("DELETE", "/deployments/small"))[0] == 200
            _, done = await words_of(answer)
        assert not done, "a truncated stream is never reported as complete"
        await eventually(lambda: [one.outcome for one in yard.journal()] == ["truncated"])


async def test_a_changed_plan_is_served_and_an_unchanged_one_is_left_alone(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(tokens=50)) as yard:
        await yard.make_key()
        first = (await yard.open()).replicas[0].launch
        await yard.want(fake_wanted(tokens=50))
        assert (await yard.open()).replicas[0].launch == first
        await asyncio.gather(*(yard.want(fake_wanted(tokens=90, replicas=2)) for _ in range(3)))
        await eventually(lambda: len(yard.route().replicas) == 2)
        await yard.gateway_follows()
        _, answer = await yard.ask(max_tokens=100)
        assert answer["usage"]["completion_tokens"] == 90
        await eventually(lambda: len(engine_pids(state)) == 2)


async def test_a_red_check_keeps_the_route_closed_and_clients_hear_why(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(facts=False)) as yard:
        await yard.make_key()
        failed = await failed_replica(yard, eventually)
        assert failed.cause == "verification is red: knowledge-1"
        assert "Tokyo" in failed.fix and "try:" in failed.fix
        assert not engine_pids(state)
        await yard.gateway_follows()
        status, answer = await yard.ask()
        assert status == 503
        assert "verification is red: knowledge-1" in answer["error"]["message"]
        red = [one.check for one in (await yard.view()).evidence if one.verdict == "red"]
        assert red == ["knowledge-1"]


async def test_evidence_that_turns_red_closes_an_open_route(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(facts=False)
        status, report = await yard.admin("POST", "/deployments/small/verify")
        assert status == 200
        assert [one["check"] for one in report["evidence"] if one["verdict"] == "red"] == ["knowledge-1"]
        assert (await failed_replica(yard, eventually)).cause == "verification is red: knowledge-1"
        assert not yard.route().open


async def test_requests_wait_while_a_serving_replica_is_proved_again(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.02)
        async with yard.chat(stream=True, max_tokens=40) as answer:
            proof = asyncio.create_task(yard.admin("POST", "/deployments/small/verify"))
            await eventually(lambda: yard.route().replicas[0].draining)
            waiting = asyncio.create_task(yard.ask())
            text, done = await words_of(answer)
        assert done and len(text.split()) == 40, "what ran before is finished first"
        status, report = await proof
        assert status == 200
        assert {one["verdict"] for one in report["evidence"]} == {"green"}
        assert (await waiting)[0] == 200, "what came meanwhile waited"
        assert not yard.route().replicas[0].draining


async def test_a_hold_ends_with_the_control_that_held(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.1)
        async with yard.chat(stream=True, max_tokens=30) as answer:
            proof = asyncio.create_task(yard.admin("POST", "/deployments/small/verify"))
            await eventually(lambda: yard.route().replicas[0].draining)
            await kill_control(yard, eventually)
            await eventually(lambda: not yard.route().replicas[0].draining)
            assert (await words_of(answer))[1]
        await proof
        assert (await yard.ask())[0] == 200


async def test_the_generation_of_the_topology_only_rises(state: StateDirectory, eventually: Eventually) -> None:
    seen: list[int] = []
    async with running_yard(state, fake_wanted()) as yard:
        await yard.open()
        seen.append(yard.topology().generation)
        await yard.admin("POST", "/deployments/small/restart")
        await yard.open()
        seen.append(yard.topology().generation)
        await kill_control(yard, eventually)
        await yard.open()
        await yard.want(fake_wanted(tokens=30))
        await yard.open()
        seen.append(yard.topology().generation)
        assert await yard.stop() == 0
    async with running_yard(state) as yard:
        await yard.open()
        seen.append(yard.topology().generation)
    assert seen == sorted(set(seen))
