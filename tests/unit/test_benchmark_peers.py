"""The pure parts of the benchmark beside other gateways: what is compared, judged and printed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import gateway_table
from benchmarks.figures import Budget, judge
from benchmarks.gateway import conclude
from benchmarks.gateway_bench import Sizes
from benchmarks.gateway_load import says_the_same
from benchmarks.gateway_rows import GROUPS, RATIOS, ROWS, budgets
from benchmarks.gateway_texts import ANSWER, DONE, answer_says, expected_stream, messages_say, stream_says
from benchmarks.peer_environments import LOCKS, unknown_hooks
from benchmarks.peers import PEERS, Place, in_a_line
from benchmarks.subjects import CannotMeasure
from benchmarks.wire import events_of

EVENTS = events_of(expected_stream(3, 4))


def rewritten(events: list[bytes]) -> list[bytes]:
    """As a proxy might: fields in another order, one added, two texts in one event."""
    decoded = [json.loads(event.removeprefix(b"data:")) for event in events[:-1]]
    first, second = decoded[0]["choices"][0]["delta"], decoded[1]["choices"][0]["delta"]
    first["content"] += second.pop("content")
    return [b"data: %b\n\n" % json.dumps({"x": 1, **event}, sort_keys=True).encode() for event in decoded] + [DONE]


def test_an_answer_that_was_encoded_anew_says_the_same() -> None:
    other = json.dumps({"system_fingerprint": None, **json.loads(ANSWER)}, indent=2, sort_keys=True).encode()
    assert other != ANSWER
    assert says_the_same(answer_says, other, answer_says(ANSWER))


@pytest.mark.parametrize("body", [ANSWER.replace(b"fox", b"cat"), ANSWER.replace(b"234", b"9")[:-9], b"", b"[]", b"{}"])
def test_another_answer_or_none_does_not(body: bytes) -> None:
    assert not says_the_same(answer_says, body, answer_says(ANSWER))


def test_a_stream_that_was_cut_anew_says_the_same() -> None:
    assert says_the_same(stream_says, rewritten(EVENTS), stream_says(EVENTS))


@pytest.mark.parametrize(
    "events", [EVENTS[1:], EVENTS[:-1], EVENTS[:2] + EVENTS[3:], [EVENTS[1], EVENTS[0], *EVENTS[2:]], [], [b"data: 1"]]
)
def test_a_stream_that_lost_or_swapped_something_does_not(events: list[bytes]) -> None:
    assert not says_the_same(stream_says, events, stream_says(EVENTS))


def in_another_dialect(events: list[bytes]) -> list[bytes]:
    texts = [json.loads(event[5:])["choices"][0]["delta"]["content"] for event in events[:-1]]
    values: list[dict[str, Any]] = [{"type": "message_start"}]
    values += [{"type": "content_block_delta", "delta": {"text": text}} for text in texts]
    values += [{"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}, {"type": "message_stop"}]
    return [f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode() for value in values]


def test_a_stream_in_another_dialect_says_the_same_and_a_shorter_one_does_not() -> None:
    events = in_another_dialect(EVENTS)
    assert says_the_same(messages_say, events, stream_says(EVENTS))
    for wrong in (events[:2] + events[3:], events[:-1], [], [b"data: 1\n\n"]):
        assert not says_the_same(messages_say, wrong, stream_says(EVENTS))


def test_every_ratio_of_the_budget_is_asked_for_where_the_other_takes_part() -> None:
    asked = {(budget.metric, budget.against): budget for budget in budgets(GROUPS, ["nginx", *PEERS])}
    assert RATIOS.keys() <= asked.keys()
    assert {other for _, other in RATIOS} == {"nginx", "vllm-router", "litellm"}
    assert asked["unary_800_cpu_us", "litellm"].limit == 1 / 80


def test_every_cpu_row_is_compared_with_everybody_and_what_has_no_budget_is_printed() -> None:
    cpu = [row.metric for group in GROUPS for row in ROWS[group] if row.metric.endswith("_cpu_us")]
    assert len(cpu) == 5
    asked = {(b.metric, b.against): b.limit for b in budgets(GROUPS, ["smg"]) if b.compare == "over"}
    assert asked == {(metric, "smg"): None for metric in cpu}


SAMPLES = {
    "chunk_cpu_us": {"nginx": [6.0, 7.0], "gateway": [9.0, 10.0], "vllm-router": [10.0, 11.0]},
    "gap_p99_ms": {"direct": [20.0, 21.0], "nginx": [20.5, 21.5], "gateway": [20.4, 21.4], "vllm-router": [21, 22]},
}


def test_a_peer_is_beaten_only_where_the_whole_interval_says_so() -> None:
    narrow = {"cpu": {"gateway": [8.9, 9.0, 9.1, 9.0], "peer": [10.0, 10.0, 10.0, 10.0]}}
    wide = {"cpu": {"gateway": [5.0, 9.0, 11.0, 8.0], "peer": [10.0, 10.0, 10.0, 10.0]}}
    budget = Budget("cpu", "cpu", 1.0, "over", "peer", "upper")
    assert judge(budget, narrow, "gateway").within
    verdict = judge(budget, wide, "gateway")
    assert verdict.interval is not None
    assert verdict.interval.mean < 1 < verdict.interval.high
    assert not verdict.within


def test_one_round_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        judge(Budget("", "cpu", 1.0, "over", "b", "upper"), {"cpu": {"a": [1.0], "b": [1.0]}}, "a")
    with pytest.raises(ValueError, match="only a ratio"):
        judge(Budget("", "cpu", 1.0, "alone", "", "upper"), {"cpu": {"a": [1.0, 2.0]}}, "a")


def test_the_table_shows_medians_and_what_is_added_to_the_engine_asked_directly() -> None:
    lines = gateway_table.medians(SAMPLES, ["streams"], ["direct", "nginx", "gateway"], {}).splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["median of the rounds", "direct", "nginx", "gateway"]
    assert re.split(r"\s{2,}", lines[1])[1:] == ["-", "6.5", "9.5"]
    assert re.split(r"\s{2,}", lines[2])[1:] == ["-", "0.5", "0.4"]


def test_who_is_missing_stands_in_the_table_with_the_reason() -> None:
    missing = {(group, "smg"): "it cannot be installed: no wheel" for group in GROUPS}
    missing["streams", "nginx"] = "it answered 413"
    text = gateway_table.medians(SAMPLES, GROUPS, ["nginx", "smg"], missing)
    assert text.count("smg: it cannot be installed: no wheel") == 1
    assert "[2] nginx: it answered 413" in text
    assert all("[1]" in line for line in text.splitlines()[1:-2])


def test_each_verdict_is_printed_with_its_numbers() -> None:
    against = ["nginx", "vllm-router"]
    found = [judge(b, SAMPLES, "gateway") for b in budgets(["streams"], against) if b.metric in SAMPLES]
    lines = gateway_table.judgements(found, {}).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["pass", "pass", "pass"]
    assert "/ vllm-router" in lines[2] and "0.905 (95 %: " in lines[2] and "upper end < 1" in lines[2]
    above = {**SAMPLES, "chunk_cpu_us": {"vllm-router": [9.0, 9.0], "gateway": [9.0, 10.0]}}
    broken = judge(budgets(["streams"], ["vllm-router"])[0], above, "gateway")
    assert gateway_table.judgements([broken], {}).endswith("FAIL")


def test_a_budget_that_could_not_be_judged_is_neither_kept_nor_broken(capsys: pytest.CaptureFixture[str]) -> None:
    budget = Budget("CPU", "cpu", 1.0, "over", "vllm-router", "upper")
    printed = Budget("CPU", "cpu", None, "over", "smg")
    assert "not judged" in gateway_table.judgements([], {budget: "it does not start"})
    assert conclude([], {budget: "it does not start"}) == 2
    assert "budget not judged: CPU vllm-router" in capsys.readouterr().err
    assert conclude([], {printed: "it does not start"}) == 0


def test_a_broken_budget_decides_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"cpu": {"a": [2.0, 2.1], "b": [1.0, 1.0]}}
    verdict = judge(Budget("CPU", "cpu", 1.5, "over", "b"), samples, "a")
    assert conclude([verdict], {Budget("CPU", "cpu", 1.0, "over", "c"): "absent"}) == 1
    assert "budget broken: CPU b" in capsys.readouterr().err


def test_a_slow_subject_gets_less_but_never_so_little_that_it_says_nothing() -> None:
    sizes = Sizes().shared(0.02)
    assert (sizes.unary, sizes.large, sizes.huge, sizes.latency, sizes.stream_events) == (800, 200, 20, 200, 25)
    assert Sizes().shared(1.0) == Sizes()


def start_of(name: str):
    place = Place(Path("/env/bin"), Path("/place"), "http://127.0.0.1:9", 7, 8, "sk-secret")
    return PEERS[name].start(place)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_listens_on_loopback_and_asks_the_same_engine(name: str) -> None:
    start = start_of(name)
    words = [*start.argv, *start.files.values()]
    assert start.argv[start.argv.index("--host") + 1] == "127.0.0.1"
    assert start.argv[start.argv.index("--port") + 1] == "7"
    assert any("http://127.0.0.1:9" in word for word in words)
    assert not any("0.0.0.0" in word for word in words)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_locked_whole_with_hashes_at_the_version_that_is_told(name: str) -> None:
    lock = (LOCKS / f"{name}.lock").read_text()
    pins = re.findall(r"^([a-z0-9-]+)(?:\[[a-z,-]+\])?==(\S+)", lock, re.MULTILINE)
    assert dict(pins)[name] in PEERS[name].configured
    for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry


def test_code_that_every_start_of_python_would_run_is_found(tmp_path: Path) -> None:
    for name, text in {
        "_virtualenv.pth": "import _virtualenv",
        "distutils-precedence.pth": "import os; ...",
        "paths.pth": "/somewhere\n# import nothing",
        "thief.pth": "/somewhere\nimport os; os.system('...')",
    }.items():
        (tmp_path / name).write_text(text)
    assert unknown_hooks(tmp_path.glob("*.pth")) == ["thief.pth"]


def test_why_a_peer_does_not_start_fits_a_line() -> None:
    error = CannotMeasure("smg ended; the end of its log:\n Traceback\n\nOSError: cannot load library\n")
    assert in_a_line(error) == "smg ended: OSError: cannot load library"
    assert in_a_line(CannotMeasure("no such program")) == "no such program"
