"""What the gateway is told: replaced whole, only ever newer, and true over a restart of its writer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.control.publisher import Publisher
from modelyard.records.base import decode
from modelyard.records.topology import Deployment, Replica, Topology
from modelyard.state import StateDirectory
from yards import fake_wanted


def replica(name: str = "small-0", launch: str = "1") -> Replica:
    return Replica(name=name, launch=launch, address=f"unix:/{name}-{launch}.sock", max_in_flight=4)


def topology(state: StateDirectory) -> Topology:
    return decode(state.topology.read_bytes(), Topology)


def only(state: StateDirectory) -> Deployment:
    [deployment] = topology(state).deployments
    return deployment


def test_a_wanted_deployment_is_known_and_closed_until_a_replica_is_routed(state: StateDirectory) -> None:
    publisher = Publisher(state)
    publisher.want(fake_wanted(replicas=2))
    assert (only(state).open, only(state).reason, only(state).replicas) == (False, "it is starting", ())
    publisher.route("small", replica())
    assert (only(state).open, only(state).reason, only(state).replicas) == (True, "", (replica(),))


def test_the_last_replica_that_goes_closes_the_route_with_its_reason(state: StateDirectory) -> None:
    publisher = Publisher(state)
    publisher.want(fake_wanted(replicas=2))
    publisher.route("small", replica("small-0"))
    publisher.route("small", replica("small-1"))
    publisher.unroute("small", "small-0", "small-0 is not ready")
    assert (only(state).open, only(state).reason) == (True, "")
    publisher.unroute("small", "small-1", "small-1 is not ready")
    assert (only(state).open, only(state).reason) == (False, "small-1 is not ready")
    publisher.explain("small", "failed: does not fit")
    assert only(state).reason == "failed: does not fit"


def test_an_open_route_needs_no_explanation(state: StateDirectory) -> None:
    publisher = Publisher(state)
    publisher.want(fake_wanted())
    publisher.route("small", replica())
    publisher.explain("small", "a check was red in a launch before")
    assert only(state).reason == ""


def test_a_new_launch_takes_the_place_of_the_old_one(state: StateDirectory) -> None:
    publisher = Publisher(state)
    publisher.want(fake_wanted())
    publisher.route("small", replica(launch="1"))
    publisher.route("small", replica(launch="2"))
    assert only(state).replicas == (replica(launch="2"),)


def test_the_next_writer_goes_on_where_the_last_one_died(state: StateDirectory) -> None:
    first = Publisher(state)
    first.want(fake_wanted(replicas=2))
    first.route("small", replica())
    before = topology(state)
    second = Publisher(state)
    assert second.published("small", "small-0") == replica()
    second.want(fake_wanted(replicas=2))
    assert topology(state) == before, "nothing changed, nothing is written"
    second.unroute("small", "small-0", "gone")
    assert topology(state).generation == before.generation + 1


def test_a_replica_that_is_no_longer_planned_is_not_kept(state: StateDirectory) -> None:
    publisher = Publisher(state)
    publisher.want(fake_wanted(replicas=2))
    publisher.route("small", replica("small-1"))
    publisher.want(fake_wanted(replicas=1))
    assert (only(state).open, only(state).replicas) == (False, ())


def test_what_nobody_wants_is_withdrawn(state: StateDirectory) -> None:
    publisher = Publisher(state)
    for name in ("kept", "gone"):
        publisher.want(fake_wanted(name))
    publisher.keep_only(["kept"])
    assert only(state).name == "kept"
    publisher.unroute("gone", "gone-0", "never heard of")
    publisher.remove("gone")
    assert only(state).name == "kept"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema":"topology/v9","generation":7}', b'{"schema":"topology/v1"}'])
def test_a_topology_that_cannot_be_read_is_begun_anew(state: StateDirectory, damage: bytes) -> None:
    state.topology.write_bytes(damage)
    Publisher(state).want(fake_wanted())
    assert only(state).name == "small"


ACTIONS: dict[str, Callable[[Publisher], None]] = {
    "want": lambda publisher: publisher.want(fake_wanted()),
    "route": lambda publisher: publisher.route("small", replica()),
    "again": lambda publisher: publisher.route("small", replica(launch="2")),
    "unroute": lambda publisher: publisher.unroute("small", "small-0", "why"),
    "explain": lambda publisher: publisher.explain("small", "because"),
    "remove": lambda publisher: publisher.remove("small"),
}


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*ACTIONS, "restart"]), max_size=12))
def test_the_generation_rises_with_every_change_and_open_means_that_a_replica_is_there(
    state: StateDirectory, actions: list[str]
) -> None:
    publisher = Publisher(state)
    publisher.want(fake_wanted())
    before = topology(state)
    for action in actions:
        if action == "restart":
            publisher = Publisher(state)
        elif action in ("want", "remove") or publisher.published("small", "small-0") or topology(state).deployments:
            ACTIONS[action](publisher)
        now = topology(state)
        changed = now.deployments != before.deployments
        assert now.generation == before.generation + changed
        for deployment in now.deployments:
            assert deployment.open == bool(deployment.replicas)
            assert bool(deployment.reason) != deployment.open
        before = now
