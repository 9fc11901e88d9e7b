"""One replica, from being wanted to being gone: the loop that owns its state and performs what `transition` decides.

Everything that happens to the replica comes in through `tell`; nobody else changes its state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from modelyard.clock import Clock
from modelyard.control.proof import prove, red_failure
from modelyard.control.publisher import Publisher
from modelyard.control.steps import Steps
from modelyard.control.wanted import Wanted
from modelyard.engines.contract import Addresses, EngineMetrics, ExitReport, Failure, LaunchSpec
from modelyard.engines.registry import engine
from modelyard.errors import ModelyardError
from modelyard.hardware.machine import Machine
from modelyard.node import shims
from modelyard.node.life import (
    Adopted,
    BeginWarmup,
    Drained,
    Effect,
    Event,
    Exited,
    KillNow,
    LifePolicy,
    ProbeAnswered,
    Progressed,
    ReplicaState,
    Report,
    Route,
    ScheduleWake,
    Spawn,
    StartAsked,
    Started,
    StopAsked,
    Terminate,
    Ticked,
    Unroute,
    Warmed,
    WarmupFailed,
    WorkSeen,
    policy_of,
)
from modelyard.node.probes import watch
from modelyard.node.replica import transition
from modelyard.node.shim_wire import Exited as ShimExited
from modelyard.node.shim_wire import LogLine, ShimSpec
from modelyard.node.shims import ShimConnection, ShimLost
from modelyard.records.plan import ReplicaPlan
from modelyard.records.topology import Replica
from modelyard.state import StateDirectory
from modelyard.verify.report import Report as Proof

PROBE_WHILE_LOADING_S = 0.1
PROBE_WHILE_DRAINING_S = 0.2
PROBE_WHILE_READY_S = 2.0
# One miss says little: what it means shall be known soon.
PROBE_AFTER_MISS_S = 0.5
# The gateway looks at the topology ten times a second; a request that it sent before may need a moment to be counted.
UNROUTED_FOR_SURE_S = 0.5
# A shim whose connection broke dials again at once, unless it is gone.
SHIM_RETURNS_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every replica of this control shares."""

    state: StateDirectory
    machine: Machine
    clock: Clock
    publisher: Publisher
    rendezvous: str
    lease_s: float


@dataclass(slots=True)
class Launch:
    """One start of the engine, as far as this control knows it."""

    number: int
    spec: LaunchSpec
    connection: ShimConnection | None = None
    watching: asyncio.Task[None] | None = None
    proving: asyncio.Task[None] | None = None
    metrics: EngineMetrics | None = None
    unrouted_at: float | None = None


class ReplicaLoop:
    """`state` and `launch` may be read by anyone; a read that is to change something goes through `tell`."""

    def __init__(self, wanted: Wanted, plan: ReplicaPlan, around: Surroundings, steps: Steps) -> None:
        self.wanted, self.plan = wanted, plan
        self.engine = engine(plan.engine)
        self.launch: Launch | None = None
        self._around, self._steps = around, steps
        # Launch numbers rise over restarts of control too: no name is ever used twice.
        self.state = ReplicaState(launch=int(around.clock.wall()))
        self._policy = LifePolicy(
            startup_timeout_s=plan.startup_timeout_s,
            drain_timeout_s=plan.drain_timeout_s,
            hang_timeout_s=plan.hang_timeout_s,
        )
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopped = asyncio.Event()
        self.settled = asyncio.Event()  # it serves, or it is given up

    # What others may say.

    def tell(self, event: Event) -> None:
        self._events.put_nowait(event)

    def start(self) -> None:
        self.tell(StartAsked(at=self._now()))

    def stop(self) -> None:
        self.stopped.clear()
        self.tell(StopAsked(at=self._now()))

    def adopt(self, spec: ShimSpec, routed: bool) -> None:
        """A launch of an earlier control dialled: go on with it."""
        number = int(spec.launch)
        self.launch = Launch(number, spec.spec)
        self._policy = policy_of(self.plan, spec.spec)
        self.tell(Adopted(at=self._now(), launch=number, routed=routed))

    def abandon(self) -> None:
        """The adopted launch never dialled: it is gone."""
        if self.launch is not None:
            self._give_up_shim(self.launch)

    def is_as_planned(self, orphan: ShimSpec) -> bool:
        """Whether a launch of an earlier control runs what is wanted now."""
        spec = self._launch_spec(int(orphan.launch))
        return (spec.argv, spec.effective, spec.address) == (
            orphan.spec.argv,
            orphan.spec.effective,
            orphan.spec.address,
        )

    async def refute(self, launch: Launch, report: Proof) -> None:
        """A launch is not what its plan claims."""
        # An engine that died under the checks is not a wrong one: its exit, already on the way, decides then.
        await asyncio.sleep(UNROUTED_FOR_SURE_S)
        self.tell(WarmupFailed(at=self._now(), launch=launch.number, failure=red_failure(report)))

    async def serve_shim(self, connection: ShimConnection) -> None:
        """Listen to the shim of the current launch until it hangs up."""
        launch = self.launch
        if launch is None or str(launch.number) != connection.hello.launch:
            await dismiss(connection)
            return
        launch.connection = connection
        self._watch(launch)
        self.tell(Started(at=self._now(), launch=launch.number))
        async for record in connection.events():
            if isinstance(record, LogLine):
                self._hear(launch, record.text)
            else:
                await self._exited(launch, connection, record)
        if launch.connection is connection:
            launch.connection = None
            self._later(SHIM_RETURNS_WITHIN_S, lambda: self._give_up_shim(launch))

    async def run(self) -> None:
        """Apply events until cancelled."""
        try:
            while True:
                event = await self._events.get()
                self.state, effects = transition(self.state, event, self._policy)
                for effect in effects:
                    await self._perform(effect)
                if self.state.phase in ("stopped", "failed") and not self.state.alive:
                    self.stopped.set()
                (self.settled.set if self.state.phase in ("ready", "failed") else self.settled.clear)()
        finally:
            for task in tuple(self._tasks):
                task.cancel()

    # What is to be done.

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn(launch=number):
                self._spawn(number)
            case BeginWarmup():
                self._prove()
            case Route():
                self._route()
            case Unroute():
                self._unroute()
            case Terminate(grace_s=grace_s):
                await self._end_engine(grace_s)
            case KillNow():
                await self._end_engine(None)
            case ScheduleWake(at=at):
                self._later(max(0.0, at - self._now()), self._tick)
            case Report(text=text):
                failed = self.state.phase in ("failed", "backoff") or self.state.condemned is not None
                self._steps.add("replica", text, replica=self.plan.name, ok=not failed)
                self._around.publisher.explain(self.wanted.name, text)
            case _:
                assert_never(effect)

    def _spawn(self, number: int) -> None:
        around = self._around
        spec = self._launch_spec(number)
        self._policy = policy_of(self.plan, spec)
        self.launch = launch = Launch(number, spec)
        shim = ShimSpec(
            replica=self.plan.name,
            launch=str(number),
            folder=str(self._folder(number)),
            spec=spec,
            rendezvous=around.rendezvous,
            lease=str(around.state.lease),
            log_path=str(around.state.logs / f"{self.plan.name}.log"),
            lease_s=around.lease_s,
        )
        self._steps.add("launch", "the engine is starting", replica=self.plan.name)
        try:
            ended = shims.spawn(shim, around.state)
        except ModelyardError as error:
            self._tell_exit(launch, Failure(kind="crashed", cause=error.message, fix=error.hint, permanent=False), ())
            return
        ended.add_done_callback(lambda _: self._give_up_shim(launch))

    def _launch_spec(self, number: int) -> LaunchSpec:
        listen = f"unix:{self._around.state.sockets / f'{self.plan.name}-{number}.sock'}"
        where = Addresses(listen=listen, folder=str(self._folder(number)))
        return self.engine.launch(self.plan, self.wanted.install, where)

    def _folder(self, number: int) -> Path:
        return self._around.state.launches / f"{self.plan.name}-{number}"

    def _prove(self) -> None:
        launch = self.launch
        assert launch is not None
        launch.proving = self._task(self._prove_launch(launch))

    async def _prove_launch(self, launch: Launch) -> None:
        around = self._around
        self._steps.add("proving", "checking the running replica", replica=self.plan.name)
        report = await prove(
            self.wanted,
            self.plan,
            self.engine,
            launch.spec,
            state=around.state,
            machine=around.machine,
            clock=around.clock,
            steps=self._steps,
        )
        if report.green:
            self.tell(Warmed(at=self._now(), launch=launch.number))
        else:
            await self.refute(launch, report)

    def _route(self) -> None:
        launch = self.launch
        assert launch is not None
        launch.unrouted_at = None
        replica = Replica(
            name=self.plan.name,
            launch=str(launch.number),
            address=launch.spec.address,
            max_in_flight=self.plan.max_in_flight,
        )
        self._around.publisher.route(self.wanted.name, replica)
        self._steps.add("route", "the route is open", replica=self.plan.name)

    def _unroute(self) -> None:
        if self.launch is not None:
            self.launch.unrouted_at = self._now()
        self._around.publisher.unroute(self.wanted.name, self.plan.name, f"{self.plan.name} is not ready")

    async def _end_engine(self, grace_s: float | None) -> None:
        connection = self.launch.connection if self.launch is not None else None
        if connection is None:
            return  # the shim has not dialled yet: `transition` asks again when it does
        with contextlib.suppress(ShimLost):
            await (connection.kill() if grace_s is None else connection.stop(grace_s))

    # What the shim and the probes say.

    def _hear(self, launch: Launch, line: str) -> None:
        progress = self.engine.read_progress(line)
        if progress is not None and self.state.phase in ("spawned", "loading"):
            self.tell(Progressed(at=self._now(), launch=launch.number, progress=progress))

    async def _exited(self, launch: Launch, connection: ShimConnection, exited: ShimExited) -> None:
        with contextlib.suppress(ShimLost):
            await connection.release()
        self._tell_exit(launch, self.engine.explain_failure(exited.report), exited.report.tail)

    def _tell_exit(self, launch: Launch, failure: Failure, tail: tuple[str, ...]) -> None:
        if self.launch is not launch:
            return
        self.launch = None
        for task in (launch.watching, launch.proving):
            if task is not None:
                task.cancel()
        jitter = self._around.clock.jitter()
        self.tell(Exited(at=self._now(), launch=launch.number, failure=failure, tail=tail, jitter=jitter))

    def _give_up_shim(self, launch: Launch) -> None:
        """The shim ended or stays away: its engine died with it."""
        if launch.connection is not None or self.launch is not launch:
            return
        shims.forget(self._around.state, self.plan.name, str(launch.number))
        report = ExitReport(code=None, signal=9, out_of_memory=False, tail=())
        self._tell_exit(launch, self.engine.explain_failure(report), ())

    def _watch(self, launch: Launch) -> None:
        if launch.watching is None:
            watching = watch(
                launch.spec,
                launch.number,
                lambda text: self._metrics(launch, text),
                lambda event: self._seen(launch, event),
                self._probe_pause_s,
                self._around.clock,
            )
            launch.watching = self._task(watching)

    def _metrics(self, launch: Launch, text: str) -> EngineMetrics:
        launch.metrics = self.engine.read_metrics(text)
        return launch.metrics

    def _seen(self, launch: Launch, event: ProbeAnswered | WorkSeen) -> None:
        self.tell(event)
        if self.state.phase == "draining" and isinstance(event, WorkSeen) and self._is_drained(launch, event.at):
            self.tell(Drained(at=event.at, launch=launch.number))

    def _is_drained(self, launch: Launch, at: float) -> bool:
        metrics = launch.metrics
        if launch.unrouted_at is None or at - launch.unrouted_at < UNROUTED_FOR_SURE_S or metrics is None:
            return False
        return metrics.running == 0 and not metrics.waiting

    def _probe_pause_s(self) -> float:
        match self.state.phase:
            case "spawned" | "loading":
                return PROBE_WHILE_LOADING_S
            case "draining":
                return PROBE_WHILE_DRAINING_S
            case _:
                return PROBE_AFTER_MISS_S if self.state.misses else PROBE_WHILE_READY_S

    # Time and tasks.

    def _now(self) -> float:
        return self._around.clock.monotonic()

    def _tick(self) -> None:
        self.tell(Ticked(at=self._now()))

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, call)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def dismiss(connection: ShimConnection) -> None:
    """End an engine that nobody wants any more, and let its shim go."""
    with contextlib.suppress(ShimLost):
        await connection.stop(0.0)
        async for record in connection.events():
            if isinstance(record, ShimExited):
                await connection.release()
