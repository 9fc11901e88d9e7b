"""All deployments of this control: what is wanted, made so."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from modelyard.control import wanted as desired
from modelyard.control.proof import prove
from modelyard.control.replica_loop import Launch, ReplicaLoop, Surroundings, dismiss
from modelyard.control.reproof import alone, due
from modelyard.control.steps import Steps
from modelyard.control.wanted import Wanted
from modelyard.errors import NotRunning, UsageError
from modelyard.node import shims
from modelyard.node.shim_wire import ShimSpec
from modelyard.node.shims import ShimConnection
from modelyard.records.base import UnreadableRecord, decode
from modelyard.verify.evidence import latest
from modelyard.verify.report import Report

RENEWAL_LOOK_EVERY_S = 600.0
# A shim dials at once; longer than this and it is not there.
ADOPTION_GRACE_S = 3.0


@dataclass(slots=True)
class Running:
    """One deployment and its replicas by name."""

    wanted: Wanted
    steps: Steps
    replicas: dict[str, ReplicaLoop]


class Fleet:
    """Owned by control's loop; every method runs on it. What changes a deployment waits for the change before it."""

    def __init__(self, around: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self.running: dict[str, Running] = {}
        self._around = around
        self._tasks = tasks
        self._loops: dict[ReplicaLoop, asyncio.Task[None]] = {}
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def begin(self) -> None:
        """Take over what an earlier control left running, then start what is wanted and does not run."""
        orphans = self._launch_files()
        for name in desired.names(self._around.state):
            try:
                found = desired.load(self._around.state, name)
            except UnreadableRecord as error:
                # One damaged file must not keep the other deployments from being served.
                print(f"error: deployment {name!r} is not served: {error.message}", flush=True)
                continue
            if found is not None:
                self._prepare(found, orphans)
        self._around.publisher.keep_only(self.running)
        if orphans:
            await asyncio.sleep(ADOPTION_GRACE_S)
        for running in tuple(self.running.values()):
            for loop in running.replicas.values():
                self._start_unless_adopted(loop)
        self._forget_the_dead(orphans)

    async def connected(self, connection: ShimConnection) -> None:
        """A shim dialled: its replica's loop listens to it, or nobody wants it any more."""
        name = connection.hello.replica
        for running in tuple(self.running.values()):
            if loop := running.replicas.get(name):
                await loop.serve_shim(connection)
                return
        await dismiss(connection)

    async def reload(self, name: str) -> int:
        """Read a deployment's file again: start it, or stop what it was and start what it is now. Returns the number
        of the last step before that."""
        async with self._changing[name]:
            running = self.running.get(name)
            found = desired.load(self._around.state, name)
            if found is None:
                raise UsageError(f"there is no deployment {name!r}", hint="modelyard up FILE")
            before = running.steps.last if running is not None else 0
            if running is None or running.wanted != found:
                if running is not None:
                    await self._stop(running)
                running = self._prepare(found, {})
            for loop in running.replicas.values():
                loop.start()
            return before

    async def restart(self, name: str) -> None:
        """End and start every replica of a deployment, also one that has failed; one after the other, so that the
        others serve meanwhile."""
        async with self._changing[name]:
            before: ReplicaLoop | None = None
            for loop in self.get(name).replicas.values():
                if before is not None:
                    await before.settled.wait()
                loop.stop()
                await loop.stopped.wait()
                loop.start()
                before = loop

    async def remove(self, name: str) -> None:
        """Stop a deployment and forget that it was wanted."""
        async with self._changing[name]:
            running = self.get(name)
            desired.remove(self._around.state, name)
            await self._stop(running)
            del self.running[name]
            self._around.publisher.remove(name)

    async def prove_again(self, name: str) -> Report:
        """Ask every check of the serving replicas once more; the first that is red is taken out and ended, and its
        report is the answer. Raises NotRunning where none serves, or one is never alone."""
        running = self.get(name)
        report: Report | None = None
        for loop in running.replicas.values():
            if loop.state.phase == "ready" and loop.launch is not None:
                report = await self._prove_one(running, loop, loop.launch)
                if not report.green:
                    return report
        if report is None:
            raise NotRunning(f"no replica of {name!r} is ready", hint=f"modelyard status {name}")
        return report

    async def _prove_one(self, running: Running, loop: ReplicaLoop, launch: Launch) -> Report:
        around = self._around
        async with alone(around.publisher, loop, launch):
            report = await prove(
                running.wanted,
                loop.plan,
                loop.engine,
                launch.spec,
                state=around.state,
                machine=around.machine,
                clock=around.clock,
                steps=running.steps,
                afresh=True,
            )
        if not report.green:
            await loop.refute(launch, report)
        return report

    async def renew_forever(self) -> None:
        """Prove again what serves before its evidence expires, at moments when it is quiet. Where none came for a day,
        the replicas are drained and start anew: a launch without valid evidence is proved before it is routed."""
        while True:
            await asyncio.sleep(RENEWAL_LOOK_EVERY_S)
            for name in tuple(self.running):
                if name in self.running:
                    await self.renew(name)

    async def renew(self, name: str) -> None:
        """One look at one deployment."""
        running, around = self.running[name], self._around
        when = due(latest(around.state, name), around.clock.wall())
        if when == "no" or not any(loop.state.phase == "ready" for loop in running.replicas.values()):
            return
        try:
            await self.prove_again(name)
        except NotRunning as error:
            running.steps.add("proof", error.message, ok=False)
            if when == "expired":
                await self.restart(name)

    async def stop_all(self, hurry: asyncio.Event) -> None:
        """Drain and end every engine, without draining once `hurry` is set; what is wanted stays wanted."""
        loops = [loop for running in self.running.values() for loop in running.replicas.values()]
        hurrying = self._tasks.create_task(_stop_again(loops, hurry))
        for loop in loops:
            loop.stop()
        for loop in loops:
            await loop.stopped.wait()
        hurrying.cancel()

    def get(self, name: str) -> Running:
        running = self.running.get(name)
        if running is None:
            raise UsageError(f"there is no deployment {name!r}", hint="modelyard status")
        return running

    def _prepare(self, wanted: Wanted, orphans: dict[str, ShimSpec]) -> Running:
        name = wanted.name
        known = self.running.get(name)
        steps = known.steps if known is not None else Steps(self._around.clock)
        replicas = {plan.name: ReplicaLoop(wanted, plan, self._around, steps) for plan in wanted.plan.replicas}
        running = self.running[name] = Running(wanted, steps, replicas)
        self._around.publisher.want(wanted)
        for loop in replicas.values():
            self._adopt_or_unroute(loop, orphans.get(loop.plan.name))
            self._loops[loop] = self._tasks.create_task(loop.run())
        return running

    def _adopt_or_unroute(self, loop: ReplicaLoop, orphan: ShimSpec | None) -> None:
        """An engine that runs what is wanted goes on; a route to anything else is closed."""
        publisher, name = self._around.publisher, loop.wanted.name
        published = publisher.published(name, loop.plan.name)
        routed = published is not None and orphan is not None and published.launch == orphan.launch
        if orphan is not None and loop.is_as_planned(orphan):
            loop.adopt(orphan, routed=routed)
            if routed:
                return
        publisher.unroute(name, loop.plan.name, "it is starting")

    def _start_unless_adopted(self, loop: ReplicaLoop) -> None:
        if loop.launch is None:
            loop.start()
        elif loop.launch.connection is None:
            loop.abandon()

    async def _stop(self, running: Running) -> None:
        for loop in running.replicas.values():
            loop.stop()
        for loop in running.replicas.values():
            await loop.stopped.wait()
            self._loops.pop(loop).cancel()

    def _launch_files(self) -> dict[str, ShimSpec]:
        """The launches that may still run, by replica; what cannot be read is nobody's."""
        found: dict[str, ShimSpec] = {}
        for path in sorted(self._around.state.launches.glob("*.json")):
            try:
                spec = decode(path.read_bytes(), ShimSpec)
            except (UnreadableRecord, FileNotFoundError):
                continue
            if spec.replica in found:
                shims.forget(self._around.state, found[spec.replica].replica, found[spec.replica].launch)
            found[spec.replica] = spec
        return found

    def _forget_the_dead(self, orphans: dict[str, ShimSpec]) -> None:
        """What a launch left on disk that nobody adopted: its shim did not dial, or was sent away."""
        adopted = {
            (loop.plan.name, str(loop.launch.number))
            for running in self.running.values()
            for loop in running.replicas.values()
            if loop.launch is not None
        }
        for orphan in orphans.values():
            if (orphan.replica, orphan.launch) not in adopted:
                shims.forget(self._around.state, orphan.replica, orphan.launch)

    def close(self) -> None:
        """End the loops; their engines are gone or live on without this control."""
        for task in self._loops.values():
            task.cancel()


async def _stop_again(loops: list[ReplicaLoop], hurry: asyncio.Event) -> None:
    await hurry.wait()
    for loop in loops:
        if not loop.stopped.is_set():
            loop.stop()
