"""What the door and the chooser decided stands in the record of the request, so that it can be decided again."""

from __future__ import annotations

from pathlib import Path

from gateway_fakes import World, answer, chat, deployment, post

from modelyard.observe.replay import replay
from modelyard.records.topology import Replica


def test_a_request_that_waited_and_one_that_was_refused_bear_what_the_door_saw(tmp_path: Path) -> None:
    seat = (Replica(name="r0", launch="l0", address="unix:/nowhere", max_in_flight=1),)
    world = World(tmp_path, shape=deployment(replicas=seat, max_queued=1))
    engine, _ = world.engine()
    clients = [world.client()[0] for _ in range(3)]
    for client in clients:
        client.data_received(post(chat()))
    engine.data_received(answer())
    engine.data_received(answer())
    refused, first, waited = world.records()
    assert first.admitted is None
    assert waited.admitted is not None and waited.admitted.verdict == "wait" and waited.queued_s > 0
    assert refused.admitted is not None and refused.admitted.verdict == "refuse"
    assert refused.admitted.entry.waiting == 1 and refused.status in (429, 503)
    found = replay(world.records())
    assert (found.entries, found.entries_differ, found.decisions, found.differ) == (2, 0, 2, 0)
