"""Is it well? The sentence, and what is to be done."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from modelyard.cli.health import DISK_LOW_BYTES, Health, Seen, ago, judge
from modelyard.control.key_log import ListedKey
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.observe.recent import Traffic
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint
from modelyard.records.keys import Budgets, Limits, Scopes

NOW = 1_000_000.0
DAY_S = 86_400.0
PRINT = Fingerprint(artifact="a", engine="e", configuration="c", machine="m")


def replica(name: str = "small-0", **fields: Any) -> ReplicaView:
    healthy = ReplicaView(
        name=name,
        phase="ready",
        engine="fake",
        launch="1",
        routed=True,
        progress="",
        fraction=None,
        cause="",
        fix="",
        permanent=False,
        tail=(),
        running_requests=0,
        kv_used_ratio=0.0,
    )
    return msgspec.structs.replace(healthy, **fields)


def evidence(left_s: float) -> Evidence:
    return Evidence(
        deployment="small",
        check="streams",
        claim="it streams",
        bound="",
        predicted="",
        measured="",
        verdict="green",
        command="",
        at=NOW - 10,
        expires_at=NOW + left_s,
        duration_s=0.1,
        fingerprint=PRINT,
    )


def deployment(*replicas: ReplicaView, name: str = "small", left_s: float = 6 * DAY_S) -> DeploymentView:
    found = replicas or (replica(),)
    return DeploymentView(
        name=name,
        open=any(one.routed for one in found),
        model="m",
        artifact_sha256="0",
        context_tokens=8192,
        replicas=found,
        evidence=(evidence(left_s),),
        steps=(),
    )


def key(name: str, left_s: float | None, *, revoked: bool = False) -> ListedKey:
    expires = None if left_s is None else NOW + left_s
    revoked_at = NOW if revoked else None
    return ListedKey(name, name, False, NOW, expires, revoked_at, 0.0, None, (), Scopes(), Limits(), Budgets())


def traffic(requests: int, failed: int) -> Traffic:
    return Traffic(deployment="small", covered_s=60.0, requests=requests, failed=failed, refused=0, completion_tokens=0)


def judged(*views: DeploymentView, keys: Any = (), traffic: Any = (), disk_free_bytes: int = 1 << 40) -> Health:
    return judge(Seen(now=NOW, deployments=views, keys=keys, traffic=traffic, disk_free_bytes=disk_free_bytes))


def test_all_is_well_and_nothing_is_to_be_done() -> None:
    assert judged(deployment()) == Health(level="well", sentence="well: small is open and proved")
    both = judged(deployment(), deployment(name="other"))
    assert both.sentence == "well: small and other are open and proved"
    many = judged(*(deployment(name=f"d{number}") for number in range(5)))
    assert many.sentence == "well: 5 deployments are open and proved"


def test_nothing_deployed_says_what_to_do() -> None:
    health = judged()
    assert health.level == "closed" and health.to_do[0].command == "modelyard up"


def test_a_deployment_that_failed_says_why_and_what_to_do() -> None:
    failed = replica(phase="failed", routed=False, cause="the model is damaged", fix="fetch it again")
    health = judged(deployment(failed), deployment(name="other"))
    assert (health.level, health.sentence) == ("closed", "closed: small: the model is damaged")
    assert (health.to_do[0].what, health.to_do[0].command) == ("fetch it again", "modelyard restart small")


def test_one_that_loads_says_how_far_it_is_and_why_it_loads_again() -> None:
    loading = replica(phase="loading", routed=False, fraction=0.43)
    assert judged(deployment(loading)).sentence == "closed: small is loading 43%"
    again = replica(phase="spawned", routed=False, cause="it was killed")
    assert judged(deployment(again)).sentence == "closed: small is starting again (it was killed)"


def test_a_replica_less_is_degraded() -> None:
    down = replica("small-1", phase="stopped", routed=False, cause="out of memory", fix="lower limits.kv_cache")
    health = judged(deployment(replica(), down))
    assert health.sentence == "degraded: 1 of 2 replicas of small does not serve (out of memory)"
    assert health.level == "degraded"
    assert (health.to_do[0].what, health.to_do[0].command) == ("lower limits.kv_cache", "modelyard logs small")


def test_failed_requests_are_degraded_and_counted() -> None:
    health = judged(deployment(), traffic=(traffic(40, 3),))
    assert health.sentence == "degraded: 3 of 40 requests to small failed in the last 60 s"
    assert judged(deployment(), traffic=(traffic(40, 0),)).level == "well"


def test_the_worst_decides_and_everything_is_listed() -> None:
    closed = deployment(replica(phase="failed", routed=False, cause="x", fix="y"))
    health = judged(closed, deployment(name="other", left_s=60), traffic=(traffic(2, 1),), disk_free_bytes=1000)
    assert health.level == "closed"
    assert len(health.to_do) == 4


@pytest.mark.parametrize(
    ("left_s", "said"),
    [(13 * 3600, ""), (11 * 3600, "expires in 11 h and was not renewed"), (-1, "has expired and was not renewed")],
)
def test_evidence_that_is_late_is_to_be_renewed(left_s: float, said: str) -> None:
    health = judged(deployment(left_s=left_s))
    assert health.level == "well"
    assert [said in one.what and one.command == "modelyard verify small" for one in health.to_do] == [True] * bool(said)


def test_a_key_that_ends_soon_is_told_of_but_not_those_of_chats_nor_dead_ones() -> None:
    keys = (
        key("ada", 2 * DAY_S),
        key("later", 4 * DAY_S),
        key("ended", -5),
        key("gone", DAY_S, revoked=True),
        key("chat small", 3600),
        key("lasting", None),
    )
    assert [one.what for one in judged(deployment(), keys=keys).to_do] == ["key 'ada' ends in 2 d"]


def test_a_disk_that_is_nearly_full_is_told_of() -> None:
    assert judged(deployment(), disk_free_bytes=DISK_LOW_BYTES).to_do == ()
    [told] = judged(deployment(), disk_free_bytes=DISK_LOW_BYTES // 2).to_do
    assert "512 MiB free" in told.what


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (6 * DAY_S, "6 d")]
)
def test_a_time_in_words(seconds: float, said: str) -> None:
    assert ago(seconds) == said
