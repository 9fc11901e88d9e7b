"""The gateway's processes: one for each number, all on one listening socket, replaced together by a reload.

A reload starts the next ones beside those that serve. Only when every one of them says that it serves are the old ones
told to step aside; if one of them does not come so far, all of them end and the old ones serve on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from modelyard.records.listening import GatewayProcess, Gateways
from modelyard.yard.children import Child

READY_WITHIN_S = 30.0
DRAIN_WITHIN_S = 32.0
# What a gateway takes as "another process serves this socket now": finish what you have, and end.
STEP_ASIDE = signal.SIGUSR1


@dataclass(slots=True)
class _Leaving:
    child: Child
    kill_at: float


class GatewayProcesses:
    """`make` builds the child with a number. `jitter`, `say` and `wall` are yard's; times are its monotonic ones."""

    def __init__(
        self, count: int, make: Callable[[int], Child], jitter: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._count, self._make, self._jitter, self._say = count, make, jitter, say
        self.serving = [make(number) for number in range(count)]
        self._coming: list[Child] = []
        self._leaving: list[_Leaving] = []
        self._ready_by = 0.0
        self._wanted_again = False
        self._reloads = 0
        self._failure = ""

    def reload(self, now: float) -> None:
        """Begin to replace every process; one reload at a time, one more after it if asked meanwhile."""
        if self._coming:
            self._wanted_again = True
            return
        self._say("reload: starting the next gateway beside the one that serves")
        self._coming = [self._make(number) for number in range(self._count)]
        self._ready_by = now + READY_WITHIN_S

    def look(self, now: float) -> None:
        """Reap and start as it is due; go on with a reload."""
        for child in self.serving:
            child.look(now, self._jitter, self._say)
        for leaving in list(self._leaving):
            if leaving.child.has_ended():
                leaving.child.close()
                self._leaving.remove(leaving)
            elif now > leaving.kill_at:
                leaving.child.signal(signal.SIGKILL)
            else:
                leaving.child.hear(now, self._say)
        if self._coming:
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        for child in self._coming:
            child.look(now, self._jitter, self._say)
        if any(child.ends_in_a_row for child in self._coming):
            self._give_up("the next gateway ended before it served", now)
        elif all(child.is_ready for child in self._coming):
            self._change_over(now)
        elif now > self._ready_by:
            self._give_up(f"the next gateway did not serve within {READY_WITHIN_S:g} s", now)

    def _change_over(self, now: float) -> None:
        for child in self.serving:
            child.signal(STEP_ASIDE)
            self._leaving.append(_Leaving(child, now + DRAIN_WITHIN_S))
        self.serving, self._coming = self._coming, []
        self._say("reload: done; the gateway before it finishes its answers")
        self._finished("", now)

    def _give_up(self, why: str, now: float) -> None:
        self._end_coming()
        self._say(f"reload: {why}; the one that served serves on")
        self._finished(why, now)

    def _finished(self, failure: str, now: float) -> None:
        self._reloads += 1
        self._failure = failure
        if self._wanted_again:
            self._wanted_again = False
            self.reload(now)

    def _end_coming(self) -> None:
        for child in self._coming:
            child.signal(signal.SIGKILL)
            # Reaped at a later look: one that the kernel holds must not hold yard.
            self._leaving.append(_Leaving(child, float("inf")))
        self._coming = []

    # The end.

    def stop(self) -> list[Child]:
        """No more reloads. Every process that is there, to be told so and waited for."""
        self._end_coming()
        self._wanted_again = False
        return [*self.serving, *(leaving.child for leaving in self._leaving)]

    # What yard's loop and others want to know.

    def ready_fds(self) -> list[int]:
        """Become readable when a process says that it serves, or ends."""
        children = (*self.serving, *self._coming)
        return [child.ready_fd for child in children if child.ready_fd >= 0 and not child.is_ready]

    def is_any_down(self) -> bool:
        return any(child.process is None for child in self.serving)

    def seen(self) -> Gateways:
        return Gateways(
            workers=self._count,
            serving=tuple(
                GatewayProcess(number=number, pid=child.process.pid, is_ready=child.is_ready)
                for number, child in enumerate(self.serving)
                if child.process is not None
            ),
            leaving=tuple(pid for leaving in self._leaving if (pid := _pid(leaving.child.process))),
            reloads=self._reloads,
            failure=self._failure,
        )


def _pid(process: subprocess.Popen[bytes] | None) -> int:
    return process.pid if process is not None else 0
