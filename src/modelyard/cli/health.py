"""Is it well? One sentence for everything that is served, and what somebody should do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from modelyard.control.key_log import ListedKey
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.observe.recent import Traffic
from modelyard.records.base import Record
from modelyard.records.evidence import Evidence
from modelyard.spec.sizes import show

Level = Literal["well", "degraded", "closed"]
DAY_S = 86_400.0
# Control renews evidence by itself in its last day; what is that late could not be renewed.
EVIDENCE_LATE_S = 12 * 3600.0
KEY_SOON_S = 3 * DAY_S
# Journals and logs grow, and an engine's environment needs a few hundred megabytes.
DISK_LOW_BYTES = 1 << 30


class ToDo(Record):
    """Something that needs doing, and the command that does it ("" where there is none)."""

    what: str
    command: str = ""


class Health(Record):
    """`sentence` begins with the level. A route that nobody can use makes it closed, anything less than whole
    degraded."""

    level: Level
    sentence: str
    to_do: tuple[ToDo, ...] = ()


class Seen(Record):
    """What was looked at. `now` is Unix seconds; `disk_free_bytes` of the state directory."""

    now: float
    deployments: tuple[DeploymentView, ...]
    keys: tuple[ListedKey, ...]
    traffic: tuple[Traffic, ...]
    disk_free_bytes: int


def judge(seen: Seen) -> Health:
    """The worst finding makes the sentence; everything that can be acted on is listed."""
    if not seen.deployments:
        to_do = (ToDo(what="name a model to serve", command="modelyard up"),)
        return Health(level="closed", sentence="closed: nothing is deployed", to_do=to_do)
    closed = [_closed(view) for view in seen.deployments if not view.open]
    worse = [*_replicas(seen.deployments), *_failures(seen.traffic)]
    to_do = (*(what for _, what in (*closed, *worse)), *_chores(seen))
    if closed:
        return Health(level="closed", sentence=f"closed: {'; '.join(text for text, _ in closed)}", to_do=to_do)
    if worse:
        return Health(level="degraded", sentence=f"degraded: {'; '.join(text for text, _ in worse)}", to_do=to_do)
    return Health(level="well", sentence=f"well: {_names(seen.deployments)} open and proved", to_do=to_do)


def _names(views: Sequence[DeploymentView]) -> str:
    names = [view.name for view in views]
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) <= 3 else f"{len(names)} deployments are"


def _closed(view: DeploymentView) -> tuple[str, ToDo]:
    """The replica that is nearest to serving says what clients wait for."""
    for phase in ("warming", "loading", "spawned"):
        for replica in view.replicas:
            if replica.phase == phase:
                progress = f" {replica.fraction:.0%}" if replica.fraction else ""
                again = f" again ({replica.cause})" if replica.cause else ""
                text = f"{view.name} is {'starting' if phase == 'spawned' else phase}{progress}{again}"
                return text, ToDo(what=f"{view.name}: wait", command="modelyard status --watch")
    first = next((replica for replica in view.replicas if replica.cause), None)
    if first is None:
        text = f"no replica of {view.name} answers its health probes"
        return text, ToDo(what="see what the engine said", command=f"modelyard logs {view.name}")
    return f"{view.name}: {first.cause}", ToDo(what=first.fix, command=_after(first, view.name))


def _after(replica: ReplicaView, deployment: str) -> str:
    """One that failed for good stays down until it is told; any other is started again by itself."""
    return f"modelyard restart {deployment}" if replica.phase == "failed" else f"modelyard logs {deployment}"


def _replicas(views: Iterable[DeploymentView]) -> list[tuple[str, ToDo]]:
    """Replicas that do not serve, of deployments that do."""
    found: list[tuple[str, ToDo]] = []
    for view in views:
        missing = [replica for replica in view.replicas if not replica.routed]
        if not view.open or not missing:
            continue
        causes = next((f" ({one.cause})" for one in missing if one.cause), "")
        text = f"{len(missing)} of {len(view.replicas)} replicas of {view.name} {'does' if len(missing) == 1 else 'do'}"
        first = missing[0]
        fix = next((one.fix for one in missing if one.fix), f"{first.name} is {first.phase}")
        found.append((f"{text} not serve{causes}", ToDo(what=fix, command=_after(first, view.name))))
    return found


def _failures(traffic: Iterable[Traffic]) -> list[tuple[str, ToDo]]:
    return [
        (
            f"{one.failed} of {one.requests} requests to {one.deployment} failed in the last {one.covered_s:.0f} s",
            ToDo(what="see what the engine said", command=f"modelyard logs {one.deployment}"),
        )
        for one in traffic
        if one.failed
    ]


def _chores(seen: Seen) -> list[ToDo]:
    """What is well still and will not stay so."""
    found: list[ToDo] = []
    for view in seen.deployments:
        if view.debug_until > seen.now:
            what = f"prompts and answers of {view.name} are written down for another {ago(view.debug_until - seen.now)}"
            found.append(ToDo(what=what, command=f"modelyard debug close {view.name}"))
        left_s = expires_in_s(view.evidence, seen.now)
        if left_s is not None and left_s < EVIDENCE_LATE_S:
            what = f"the evidence of {view.name} " + (f"expires in {ago(left_s)}" if left_s > 0 else "has expired")
            found.append(ToDo(what=f"{what} and was not renewed yet", command=f"modelyard verify {view.name}"))
    for key in seen.keys:
        if key.expires_at is None or key.revoked_at is not None or key.name.startswith("chat "):
            continue
        left_s = key.expires_at - seen.now
        if 0 < left_s < KEY_SOON_S:
            found.append(ToDo(what=f"key {key.name!r} ends in {ago(left_s)}", command="modelyard keys create NAME"))
    if seen.disk_free_bytes < DISK_LOW_BYTES:
        found.append(ToDo(what=f"the disk of the state directory has {show(seen.disk_free_bytes)} free: make room"))
    return found


def expires_in_s(evidence: Sequence[Evidence], now: float) -> float | None:
    """Until the first of it expires; None where there is none."""
    return min(one.expires_at for one in evidence) - now if evidence else None


def ago(seconds: float) -> str:
    """`16 s`, `4 min`, `3 h`, `6 d`"""
    for size, unit in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
