"""The self-test's own judgement: what makes a row green, red or not run, what is kept, and what the page says."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.cli.selftest import selftest
from modelyard.errors import ModelyardError, UsageError
from modelyard.selftest import registry, sources
from modelyard.selftest.asking import judge
from modelyard.selftest.bench import Bench
from modelyard.selftest.connection import Response
from modelyard.selftest.document import document
from modelyard.selftest.endings import judged
from modelyard.selftest.outcome import Figure, Outcome, Tally, quantile
from modelyard.selftest.result import Result, latest, save
from modelyard.selftest.row import CannotRun, Row
from modelyard.selftest.running import run
from modelyard.selftest.sources import source_sha256
from modelyard.state import StateDirectory


def row(tried: Callable[[Bench], Awaitable[Outcome]], **changes: object) -> Row:
    made = Row("7", "a | name", "It holds.", "kills", 3, 2, tried, ("gateway/balance.py",), takes_s=1.0)
    return replace(made, **changes)


def tried_once(one: Row, *, short: bool = False) -> Result:
    return run(one, seed=5, short=short, command="modelyard selftest", on_progress=lambda done: None)


async def sound(bench: Bench) -> Outcome:
    tally = Tally()
    for _ in range(bench.size):
        tally.tried()
        tally.saw("whole")
    tally.figure("p99", 2.0, "ms", at_most=3.0)
    return tally.outcome()


async def wrong_once(bench: Bench) -> Outcome:
    tally = Tally()
    tally.tried(bench.size)
    tally.wrong("a false [DONE]")
    return tally.outcome()


async def too_slow(bench: Bench) -> Outcome:
    tally = Tally()
    tally.tried(bench.size)
    tally.figure("p99", 4.0, "ms", at_most=3.0)
    return tally.outcome()


async def gives_up_early(bench: Bench) -> Outcome:
    return Outcome(tried=bench.size - 1)


async def breaks(bench: Bench) -> Outcome:
    raise ZeroDivisionError("as it happens")


async def never_ends(bench: Bench) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


async def lacks_something(bench: Bench) -> Outcome:
    raise CannotRun("no nginx here", hint="install it")


def test_a_row_that_was_tried_as_often_as_promised_and_saw_nothing_wrong_is_green() -> None:
    found = tried_once(row(sound))
    assert (found.verdict, found.outcome.tried, found.outcome.counts) == ("green", 3, {"whole": 3})
    assert (found.seed, found.size, found.short) == (5, 3, False)
    assert tried_once(row(sound), short=True).outcome.tried == 2


@pytest.mark.parametrize("tried", [wrong_once, too_slow, gives_up_early, breaks])
def test_a_row_is_red_for_each_thing_that_its_claim_excludes(tried: Callable[[Bench], Awaitable[Outcome]]) -> None:
    assert tried_once(row(tried)).verdict == "red"


def test_a_row_that_breaks_says_how() -> None:
    assert "ZeroDivisionError: as it happens" in tried_once(row(breaks)).outcome.failed[0]


def test_a_row_that_does_not_end_is_red() -> None:
    found = tried_once(row(never_ends, limit_s=0.05))
    assert found.verdict == "red" and "no end within 0.05 s" in found.outcome.failed[0]


def test_a_row_that_cannot_be_tried_here_is_neither_green_nor_red() -> None:
    found = tried_once(row(lacks_something))
    assert (found.verdict, found.reason) == ("not run", "no nginx here; install it")


async def lacks_something_in_a_group(bench: Bench) -> Outcome:
    async with asyncio.TaskGroup() as group:
        await group.create_task(lacks_something(bench))
    raise AssertionError


def test_what_a_group_of_tasks_lacks_is_told_all_the_same() -> None:
    assert tried_once(row(lacks_something_in_a_group)).reason == "no nginx here; install it"


def test_all_failures_are_counted_and_the_first_are_kept() -> None:
    tally = Tally()
    for number in range(1000):
        tally.wrong(f"{number} " + "x" * 1000)
    found = tally.outcome()
    assert found.failures == 1000 and len(found.failed) == 20 and all(len(text) <= 400 for text in found.failed)


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (Figure(name="told", value=1e9), True),
        (Figure(name="low", value=3.0, at_most=3.0), True),
        (Figure(name="low", value=3.1, at_most=3.0), False),
        (Figure(name="high", value=2.9, at_least=3.0), False),
        (Figure(name="nothing measured", value=math.nan, at_most=3.0), False),
        (Figure(name="nothing measured", value=math.nan, at_least=3.0), False),
    ],
)
def test_a_figure_holds_within_its_bounds_only(figure: Figure, holds: bool) -> None:
    assert figure.holds is holds


def test_quantiles_are_those_of_the_nearest_rank() -> None:
    assert [quantile(range(1, 101), q) for q in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert quantile([7.0], 0.5) == 7.0 and math.isnan(quantile([], 0.5))


# What is kept.


def test_the_long_and_the_short_form_are_kept_apart(state: StateDirectory) -> None:
    save(state, tried_once(row(sound)))
    save(state, tried_once(row(wrong_once), short=True))
    long, short = latest(state, "7", short=False), latest(state, "7", short=True)
    assert long is not None and short is not None and (long.verdict, short.verdict) == ("green", "red")
    assert latest(state, "8", short=False) is None


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package in a checkout: a program, what it imports, and what it does not."""
    texts = {
        "src/modelyard/gateway/__init__.py": "",
        "src/modelyard/gateway/__main__.py": "from modelyard.records import topology\ndef f(): import modelyard.late",
        "src/modelyard/records/__init__.py": "",
        "src/modelyard/records/topology.py": "import msgspec",
        "src/modelyard/records/keys.py": "a = 1\n",
        "src/modelyard/late.py": "if TYPE_CHECKING: import modelyard.records.keys",
        "src/modelyard/programs/server.py": "import http1\n",
        "src/modelyard/programs/http1.py": "",
        "benchmarks/__init__.py": "",
        "benchmarks/kills.py": "from benchmarks import load",
        "benchmarks/load.py": "",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "src/modelyard")
    return tmp_path / "src/modelyard"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("gateway", "gateway/__init__ gateway/__main__ records/__init__ records/topology late"),
        ("records/topology.py", "records/topology"),
        ("programs/server.py", "programs/server programs/http1"),
        ("benchmarks/kills.py", "../../benchmarks/__init__ ../../benchmarks/kills ../../benchmarks/load"),
    ],
)
def test_a_result_speaks_for_what_runs_and_all_that_it_imports(package: Path, source: str, names: str) -> None:
    found = sources.files_of(row(sound, sources=(source,))) - {Path(__file__)}
    assert {path.resolve() for path in found} == {(package / f"{name}.py").resolve() for name in names.split()}


def test_the_source_hash_changes_with_each_of_these_files_and_no_other(package: Path) -> None:
    one = row(sound, sources=("gateway",))
    before = source_sha256(one)
    (package / "records" / "keys.py").write_text("a = 2\n")
    assert source_sha256(one) == before
    (package / "records" / "topology.py").write_text("a = 2\n")
    assert source_sha256(one) != before


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"row 7 names a source that is not there: gone\.py"):
        source_sha256(row(sound, sources=("gone.py",)))


@pytest.mark.parametrize("one", registry.ROWS, ids=lambda one: one.key)
def test_every_row_names_sources_that_exist_and_a_size(one: Row) -> None:
    assert source_sha256(one) and one.sources
    assert one.full >= one.short >= 0 and one.full > 0 and one.limit_s > one.takes_s > 0


def test_no_two_rows_have_one_key() -> None:
    assert len({one.key for one in registry.ROWS}) == len(registry.ROWS)


# Choosing.


def test_rows_are_chosen_by_key_range_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(row(sound, key=key) for key in ("4", "22", "33", "35", "resumption"))
    monkeypatch.setattr(registry, "ROWS", rows)

    def keys(text: str) -> list[str]:
        return [one.key for one in registry.choose(text)]

    assert keys("") == ["4", "22", "33", "35", "resumption"]
    assert keys("none") == []
    assert keys("resumption, 33-35,4") == ["4", "33", "35", "resumption"]
    for unknown in ("5", "36-40", "-", "4-"):
        with pytest.raises(UsageError, match="there is no row"):
            keys(unknown)


# The page.


def test_the_page_tells_every_row_and_never_more_than_was_tried() -> None:
    rows = [row(sound), row(wrong_once, key="8"), row(sound, key="9"), row(sound, key="10")]
    short = tried_once(rows[2], short=True)
    stale = replace_source(tried_once(rows[3]), "0" * 64)
    found = {"7": tried_once(rows[0]), "9": short, "10": stale}
    page = document(rows, found.get)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert r"| 7 | a \| name | 3 kills | green |" in lines[1]
    assert r"| 8 | a \| name | 0 of 3 kills | not run |" in lines[2]
    assert r"| 9 | a \| name | 2 kills, short form | green |" in lines[3]
    assert "| 3 kills | green, code changed since |" in lines[4] and "changed since" not in lines[1]
    assert "Seen: 3 whole." in page and "| p99 | 2 ms | at most 3 ms |" in page


def test_the_page_names_what_failed() -> None:
    one = row(wrong_once)
    assert "* a false \\[DONE]" in document([one], {"7": tried_once(one)}.get)


def replace_source(found: Result, sha256: str) -> Result:
    return Result(**{name: getattr(found, name) for name in Result.__struct_fields__} | {"source_sha256": sha256})


# What the campaigns must notice.


def event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


PIECE = event('{"choices": [{"delta": {"content": "w0"}, "finish_reason": null}]}')
STOP = event('{"choices": [{"delta": {}, "finish_reason": "stop"}]}')
ERROR = event('{"error": {"message": "it ended"}}')
DONE = event("[DONE]")


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (PIECE + STOP + DONE, "whole"),
        (b": comment\n\n" + PIECE + STOP + DONE, "whole"),
        (PIECE + ERROR, "cut"),
        (PIECE + ERROR + DONE, "wrong"),
        (PIECE + STOP + ERROR, "wrong"),
        (PIECE + DONE, "wrong"),
        (PIECE + STOP, "wrong"),
        (STOP + DONE, "wrong"),
        (PIECE[:-9], "wrong"),
        (b"", "wrong"),
    ],
)
def test_a_stream_is_whole_or_ends_in_one_error_event(body: bytes, verdict: str) -> None:
    assert judge(200, {}, body, True, "w0")[0] == verdict


def test_a_red_row_ends_the_command_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELYARD_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(registry, "ROWS", (row(wrong_once), row(sound, key="8")))
    with pytest.raises(ModelyardError, match="red: 7") as raised:
        selftest(rows="", short=True, resume=False, seed=3, write=tmp_path / "page.md", show=False, json=False)
    assert raised.value.exit_code == 1 and "--rows 7 --seed 3" in raised.value.hint
    assert "| 8 | a \\| name | 2 kills, short form | green |" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("status", "headers", "body", "verdict"),
    [
        (200, {}, {"choices": [{"message": {"content": "w0 w1"}, "finish_reason": "stop"}]}, "whole"),
        (200, {}, {"choices": [{"message": {"content": "w0"}, "finish_reason": "stop"}]}, "wrong"),
        (200, {}, {"error": {}}, "wrong"),
        (503, {"retry-after": "2"}, {"error": {}}, "unavailable"),
        (503, {}, {"error": {}}, "wrong"),
        (502, {"retry-after": "2"}, {"error": {}}, "wrong"),
    ],
)
def test_a_plain_answer_is_whole_or_says_when_to_come_again(
    status: int, headers: dict[str, str], body: object, verdict: str
) -> None:
    assert judge(status, headers, json.dumps(body).encode(), False, "w0 w1")[0] == verdict


OPENAI = {"error": {"message": "it ended", "type": "server_error", "param": None, "code": "truncated"}}
CUT = event(json.dumps(OPENAI))


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (PIECE + STOP + DONE, "whole"),
        (PIECE + CUT, "cut"),
        (CUT, "cut"),
        (PIECE + ERROR, "wrong"),
        (PIECE + CUT + DONE, "wrong"),
        (PIECE + STOP + DONE + CUT, "wrong"),
        (PIECE + STOP + CUT, "wrong"),
        (PIECE + PIECE + STOP + DONE, "wrong"),
        (PIECE + PIECE + CUT, "wrong"),
        (PIECE + event('{"choices": [{') + STOP + DONE, "wrong"),
        (PIECE, "wrong"),
        (b"", "wrong"),
    ],
)
def test_an_ending_is_one_of_three_or_wrong(body: bytes, ending: str) -> None:
    assert judged(Response(200, {}, body, 0.0, 0.0, 0.0), "w0", stream=True).ending == ending


@pytest.mark.parametrize(
    ("status", "headers", "body", "ending"),
    [
        (502, {}, OPENAI, "refused"),
        (503, {"retry-after": "1"}, OPENAI, "refused"),
        (503, {}, OPENAI, "wrong"),
        (502, {"content-type": "text/html"}, OPENAI, "wrong"),
        (502, {}, {"error": "it ended"}, "wrong"),
        (502, {}, {"error": {"message": "it ended"}}, "wrong"),
        (502, {}, [], "wrong"),
    ],
)
def test_a_refusal_is_an_error_object_and_a_503_says_when(
    status: int, headers: dict[str, str], body: object, ending: str
) -> None:
    response = Response(
        status, {"content-type": "application/json", **headers}, json.dumps(body).encode(), 0.0, 0.0, 0.0
    )
    assert judged(response, "w0", stream=False).ending == ending
