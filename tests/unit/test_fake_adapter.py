"""The FakeEngine's adapter and the Prometheus text that it reads: pure, no process."""

from __future__ import annotations

import json

import pytest

from modelyard.engines import prometheus_text
from modelyard.engines.contract import Addresses, EngineMetrics, ExitReport, Installed, Progress
from modelyard.engines.fake import FakeAdapter
from modelyard.records.plan import Artifact, ReplicaPlan, Setting
from modelyard.testing.fake_answers import BadSchema, cut, instance, words
from modelyard.testing.fake_knobs import CRASHES, BadKnob, Knobs

FAKE = FakeAdapter()
INSTALLED = Installed(engine="fake", version="1", python="/env/bin/python", root="/env", lock_sha256="0" * 64)


def a_replica(**settings: str | int | float | bool) -> ReplicaPlan:
    return ReplicaPlan(
        name="demo-0",
        engine="fake",
        served_name="demo",
        artifact=Artifact(name="demo", format="fake", path="/dev/null", sha256="0" * 64, size_bytes=0, lineage=""),
        max_in_flight=8,
        context_tokens=2048,
        settings=tuple(Setting(name=name, value=value, reason="test") for name, value in settings.items()),
    )


def an_exit(code: int | None = None, *tail: str, signal: int | None = None, out_of_memory: bool = False) -> ExitReport:
    return ExitReport(code=code, signal=signal, out_of_memory=out_of_memory, tail=tail)


def test_a_launch_writes_the_knobs_of_the_plan_into_a_file_that_the_engine_reads():
    spec = FAKE.launch(a_replica(tokens=3), INSTALLED, Addresses(listen="unix:/run/a.sock", folder="/run/a"))
    python, *options, program, flag, config = spec.argv
    assert (python, options, flag) == ("/env/bin/python", ["-I", "-S"], "--config")
    assert program.endswith("fake_engine.py")
    name = config.removeprefix("/run/a/")
    assert json.loads(spec.files[name]) == {
        "address": "unix:/run/a.sock",
        "served_name": "demo",
        "context_tokens": 2048,
        "tokens": 3,
    }
    assert spec.address == "unix:/run/a.sock"


def test_the_effective_configuration_does_not_hold_the_address_of_a_launch():
    plan = a_replica(tokens=3)
    first = FAKE.launch(plan, INSTALLED, Addresses(listen="unix:/run/a.sock", folder="/run/a"))
    second = FAKE.launch(plan, INSTALLED, Addresses(listen="http://127.0.0.1:1", folder="/run/b"))
    assert first.effective == second.effective == {"tokens": 3, "served_name": "demo", "context_tokens": 2048}


def test_a_tcp_address_is_given_to_the_engine_without_its_scheme():
    spec = FAKE.launch(a_replica(), INSTALLED, Addresses(listen="http://127.0.0.1:81", folder="/run"))
    assert json.loads(spec.files["fake_engine.json"])["address"] == "127.0.0.1:81"
    assert spec.address == "http://127.0.0.1:81"


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ('progress {"stage": "loading", "fraction": 0.5}', Progress(stage="loading", fraction=0.5)),
        ('ready {"address": "unix:/a"}', None),
        ("progress is slow", None),
        ('progress {"stage": "loading"}', None),
        ("progress [1]", None),
        ("", None),
    ],
)
def test_only_progress_lines_are_progress(line: str, progress: Progress | None):
    assert FAKE.read_progress(line) == progress


def test_metrics_that_are_absent_stay_absent():
    assert FAKE.read_metrics("") == EngineMetrics()
    assert FAKE.read_metrics("modelyard_engine_requests_running 0\n") == EngineMetrics(running=0.0)


def test_work_done_is_the_count_of_steps():
    text = "modelyard_engine_steps_total 7\nmodelyard_engine_generation_tokens_total 3\n"
    assert FAKE.read_metrics(text) == EngineMetrics(work_done=7.0, generated_tokens=3.0)


@pytest.mark.parametrize(
    ("report", "kind", "permanent"),
    [
        (an_exit(2, *CRASHES["bad-flag"][1]), "bad_config", True),
        (an_exit(1, *CRASHES["missing-file"][1]), "model", True),
        (an_exit(1, *CRASHES["damaged-model"][1]), "model", True),
        (an_exit(1, *CRASHES["does-not-fit"][1]), "does_not_fit", True),
        (an_exit(1, *CRASHES["crash"][1]), "crashed", False),
        (an_exit(None, signal=9, out_of_memory=True), "out_of_memory", False),
        (an_exit(None, signal=9), "killed", False),
        (an_exit(None, signal=11), "crashed", False),
        (an_exit(0), "crashed", False),
    ],
)
def test_a_failure_is_permanent_only_where_the_next_start_would_end_the_same(
    report: ExitReport, kind: str, permanent: bool
):
    failure = FAKE.explain_failure(report)
    assert (failure.kind, failure.permanent) == (kind, permanent)
    assert failure.cause
    assert failure.fix


def test_the_cause_is_the_last_error_line_not_the_last_line():
    report = an_exit(2, "error: first", "error: unknown knob: tokenz", "goodbye")
    assert FAKE.explain_failure(report).cause == "unknown knob: tokenz"


def test_a_crash_without_an_error_line_is_told_by_the_last_words_of_the_log():
    cause = FAKE.explain_failure(an_exit(None, "Traceback", "RuntimeError: gone", "", signal=6)).cause
    assert cause == "signal 6: RuntimeError: gone"


def test_series_of_one_name_are_summed_over_the_labels_that_were_not_asked_for():
    text = 'x{model="a",code="200"} 1\nx{model="a",code="500"} 2\nx{model="b",code="200"} 4\nxy 8\n'
    samples = prometheus_text.parse(text)
    assert prometheus_text.total(samples, "x") == 7
    assert prometheus_text.total(samples, "x", model="a") == 3
    assert prometheus_text.total(samples, "x", model="a", code="500") == 2
    assert prometheus_text.total(samples, "x", model="c") is None


def test_label_values_may_hold_braces_commas_and_escapes():
    (sample,) = prometheus_text.parse(r'x{path="a} 1,b=\"c\"\\\n", z = "" ,} 5 1700000000000')
    assert sample.labels == {"path": 'a} 1,b="c"\\\n', "z": ""}
    assert sample.value == 5


def test_comments_nan_and_the_cut_off_end_of_a_page_are_left_out():
    text = '# HELP x y\nx NaN\ny +Inf\nz{a="b" 1\nv{a} 1\nw one\nu 1e3\nlast_'
    assert [(sample.name, sample.value) for sample in prometheus_text.parse(text)] == [("y", float("inf")), ("u", 1e3)]


@pytest.mark.parametrize(
    "change",
    [
        {"tokenz": 1},
        {"tokens": "1"},
        {"tokens": True},
        {"tokens": None},
        {"tokens": -1},
        {"prefill_s": float("nan")},
        {"facts": 1},
        {"startup_style": "late"},
        {"crash_at_start": "boom"},
        {"max_sequences": 0},
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_by_name(change: dict[str, str | int | float | bool | None]):
    with pytest.raises(BadKnob, match=next(iter(change))):
        Knobs().changed(change)


def test_knobs_of_the_start_cannot_be_turned_later():
    assert Knobs().changed({"startup_s": 1}).startup_s == 1
    with pytest.raises(BadKnob, match="startup_s"):
        Knobs().turned({"startup_s": 1, "tokens": 1})


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 0}),
        ({"type": "string", "minLength": 3}, "xxx"),
        ({"enum": ["red", "blue"]}, "red"),
        ({"const": 5}, 5),
        ({"type": ["integer", "null"], "minimum": 3, "multipleOf": 5}, 5),
        ({"type": "integer", "exclusiveMaximum": -2}, -3),
        ({"type": "array", "minItems": 2, "items": {"type": "boolean"}}, [False, False]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array"}}}, []),
        ({"allOf": [{"required": ["a"]}, {"properties": {"a": {"const": 1}}}], "type": "object"}, {"a": 1}),
    ],
)
def test_the_instance_of_a_schema_is_the_least_that_it_allows(schema: object, value: object):
    assert instance(schema) == value


def test_the_instance_of_a_schema_is_valid():
    jsonschema = pytest.importorskip("jsonschema")
    node = {"type": "object", "properties": {"next": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
    schema = {
        "$defs": {"node": {**node, "required": ["next"]}},
        "type": "object",
        "properties": {
            "node": {"$ref": "#/$defs/node"},
            "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "odd": {"type": "integer", "minimum": 7, "multipleOf": 3},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
        },
        "required": ["node", "share", "odd", "pair"],
        "additionalProperties": False,
    }
    jsonschema.validate(instance(schema), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/absent"},
        {"$ref": "https://example.org/schema"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"allOf": [{"$ref": "#"}]},
        {"type": "thing"},
        [],
    ],
)
def test_a_schema_that_has_no_finite_instance_is_refused(schema: object):
    with pytest.raises(BadSchema):
        instance(schema)


def test_a_stop_text_across_tokens_is_cut_and_left_out():
    answer = cut(words(5), ["1 w2"], limit=5)
    assert ("".join(answer.pieces), answer.finish_reason) == ("w0 w", "stop")


def test_the_first_of_several_stop_texts_wins_even_within_the_limit():
    assert "".join(cut(words(9), ["w4", "w2"], limit=9).pieces) == "w0 w1 "
    assert cut(words(9), ["w8"], limit=3).finish_reason == "length"
