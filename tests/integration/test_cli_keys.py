"""Keys, teams and money from the command line, at a running yard with a FakeEngine: what is typed is what holds."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_child import Response, Wire, post

from commands import Command, Finished
from modelyard.cli import app
from modelyard.observe.audit import entries
from modelyard.observe.journal import read_journal
from modelyard.records.spending import DAY_S
from modelyard.state import open_state
from yards import processes_of

FAKE_UP = str(Path(__file__).parents[1] / "fake_up.py")
LIVE_WITHIN_S = 1.0
SPEC = """\
apiVersion: modelyard/v1
name: small
model: smollm2
prices:
  currency: EUR
  input: 0.15
  output: 0.60
"""


class Yard:
    """A yard that serves `small`, with two workers of the gateway."""

    def __init__(self, root: Path) -> None:
        self.state = open_state(root / "state")
        self.command = Command(self.state.root, (FAKE_UP,))
        spec = root / "small.yaml"
        spec.write_text(SPEC)
        up = self.command("up", "-d", "--port", "0", "--workers", "2", str(spec), "--json", check=True)
        self.port = int(up.lines[-1]["url"].rpartition(":")[2].removesuffix("/v1"))


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    os.environ["MODELYARD_TEST_KNOBS"] = "{}"
    yard = Yard(tmp_path_factory.mktemp("keys"))
    yield yard
    yard.command("down")
    assert processes_of(yard.state) == {}
    shutil.rmtree(yard.state.sockets, ignore_errors=True)


class Served:
    """What an operator types and a client asks. Verbs run in this process: starting one for each would take longer than
    all that they do."""

    def __init__(self, yard: Yard, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.state, self._port = yard.state, yard.port
        self._patch, self._capture = patch, capture
        patch.setenv("MODELYARD_STATE", str(self.state.root))

    def command(self, *arguments: str) -> Finished:
        self._patch.setattr("sys.argv", ["modelyard", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.run()
        shown = self._capture.readouterr()
        return Finished(int(ended.value.code or 0), shown.out, shown.err)

    def __call__(self, *arguments: str) -> Any:
        """The JSON that a verb prints."""
        ended = self.command(*arguments, "--json")
        assert ended.code == 0, ended
        return ended.value

    def refusal(self, *arguments: str) -> str:
        ended = self.command(*arguments)
        assert ended.code == 2, ended
        return ended.err

    def ask(self, key: str, **fields: Any) -> Response:
        body = {"model": "small", "prompt": "one two three", "max_tokens": 4, **fields}
        with Wire(("127.0.0.1", self._port)) as wire:
            return wire.ask(post(json.dumps(body).encode(), key=key, path="/v1/completions"))

    def status_within(self, key: str, status: int, times: int = 8, **fields: Any) -> None:
        """Requests are answered with `status`, so many in a row, whichever worker takes their connection; none is
        answered otherwise after the promised second."""
        deadline, right = time.monotonic() + LIVE_WITHIN_S, 0
        while right < times:
            found = self.ask(key, **fields).status
            assert found == status or time.monotonic() < deadline, found
            right = right + 1 if found == status else 0


def value_of(response: Response) -> dict[str, Any]:
    return json.loads(response.body)


@pytest.fixture
def served(yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Served:
    return Served(yard, monkeypatch, capsys)


def test_a_key_is_shown_once_and_listed_with_its_bounds(served: Served) -> None:
    made = served("keys", "create", "shown", "--requests-per-minute", "60", "--max-tokens", "9", "--priority", "2")
    assert served.ask(made["key"]).status == 200
    listed = next(one for one in served("keys", "list") if one["id"] == made["id"])
    assert (listed["limits"]["max_tokens"], listed["priority"]) == (9, 2)
    for shown in (served.command("keys", "list").out, served.command("keys", "show", "shown").out):
        assert "60 requests/min" in shown and "9 tokens an answer" in shown and "priority 2" in shown
    secret = made["key"].rpartition("_")[2]
    files = [path for path in served.state.root.rglob("*") if path.is_file()]
    assert files and not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_change_is_live_within_a_second_and_stands_in_the_audit_log(served: Served) -> None:
    made = served("keys", "create", "changed")
    assert served.ask(made["key"], max_tokens=6).status == 200
    served("keys", "change", "changed", "--max-tokens", "5", "--budget-per-day", "1.00")
    served.status_within(made["key"], 400, max_tokens=6)
    error = value_of(served.ask(made["key"], max_tokens=6))["error"]
    assert error["param"] == "max_tokens" and "at most 5 tokens" in error["message"]
    before = served.state.keys.read_bytes()
    served("keys", "change", made["id"], "--max-tokens", "5")
    assert served.state.keys.read_bytes() == before, "what is there already is not written again"
    changed = served("teams", "change", "changed", "--without", "max-tokens", "--without", "budget-per-day")
    assert changed["limits"] == changed["budgets"] == {}
    served.status_within(made["key"], 200, max_tokens=6)
    noted = [one for one in entries(served.state.audit) if one.action == "keys.change"]
    assert [(one.subject, one.details.get("max_tokens"), one.details["status"]) for one in noted] == [
        (made["id"], "5", "200"),
        (made["id"], "5", "200"),
        (made["id"], "none", "200"),
    ]
    assert noted[0].details["budget_per_day"] == "1.00" and noted[0].details["name"] == "changed"


def test_nothing_to_change_and_both_at_once_are_said(served: Served) -> None:
    assert "nothing is to be changed" in served.refusal("keys", "change", "shown")
    both = served.refusal("keys", "change", "shown", "--priority", "1", "--without", "priority")
    assert "--priority is given and taken away" in both
    assert "there is no key 'nobody'" in served.refusal("keys", "change", "nobody", "--priority", "1")


def test_a_child_never_exceeds_its_team_when_made_when_changed_and_while_it_runs(served: Served) -> None:
    served("teams", "create", "bounded", "--requests-per-minute", "3")
    keys = [served("keys", "create", name, "--team", "bounded", "--requests-per-minute", "3") for name in ("a", "b")]
    more = served.refusal("keys", "create", "c", "--team", "bounded", "--requests-per-minute", "4")
    assert "4 requests per minute, where team 'bounded' has 3" in more
    assert "team 'bounded' has 3" in served.refusal("keys", "change", "a", "--requests-per-minute", "4")
    below = served.refusal("teams", "change", "bounded", "--requests-per-minute", "2")
    assert "key 'a' would have more than its parent" in below
    asked = [served.ask(keys[number % 2]["key"]) for number in range(4)]
    assert [one.status for one in asked] == [200, 200, 200, 429]
    assert "the limit of 3 requests per minute (team 'bounded')" in value_of(asked[-1])["error"]["message"]
    served("teams", "change", "bounded", "--requests-per-minute", "4")
    served.status_within(keys[0]["key"], 200, times=1)
    assert served.ask(keys[1]["key"]).status == 429, "what was asked before the change counts"


def test_a_rotated_key_has_two_secrets_for_as_long_as_it_was_said(served: Served) -> None:
    made = served("keys", "create", "rotated")
    second = served("keys", "rotate", "rotated", "--overlap", "1h")
    assert [served.ask(one["key"]).status for one in (made, second)] == [200, 200]
    third = served("keys", "rotate", made["id"])
    served.status_within(second["key"], 401)
    assert [served.ask(one["key"]).status for one in (made, third)] == [401, 200]


def test_a_revoked_key_is_dead_within_a_second_also_by_its_team(served: Served) -> None:
    served("teams", "create", "gone")
    alone, child = served("keys", "create", "alone"), served("keys", "create", "child", "--team", "gone")
    assert [served.ask(one["key"]).status for one in (alone, child)] == [200, 200]
    for name, made in (("alone", alone), ("gone", child)):
        served("keys", "revoke", name)
        served.status_within(made["key"], 401)


def test_a_budget_that_is_spent_says_when_there_is_more(served: Served) -> None:
    made = served("keys", "create", "spent")
    used = value_of(served.ask(made["key"]))["usage"]["total_tokens"]
    served("keys", "change", "spent", "--budget-tokens-per-day", str(used + 1))
    refused = served.ask(made["key"])
    left_s = DAY_S - time.time() % DAY_S
    error = value_of(refused)["error"]
    assert (refused.status, error["code"]) == (429, "insufficient_quota")
    assert "1 left" in error["message"] and "key 'spent'" in error["message"], "what was used before counts"
    assert abs(int(refused.headers["retry-after"]) - left_s) < 60
    assert refused.headers["x-should-retry"] == "false"
    served("keys", "change", "spent", "--without", "budget-tokens-per-day", "--budget-per-day", "0.000001")
    served.status_within(made["key"], 429)
    assert "the budget of 0.000001 per day" in value_of(served.ask(made["key"]))["error"]["message"]


def test_usage_is_what_the_journal_holds_to_the_token_as_a_table_json_and_csv(served: Served) -> None:
    served("teams", "create", "counted")
    made = served("keys", "create", "counts", "--team", "counted")
    for length in (3, 5):
        assert served.ask(made["key"], max_tokens=length).status == 200
    assert served.ask(made["key"], model="nobody").status == 404
    records = [one for one in read_journal(served.state.journal).records if one.key_id == made["id"]]
    prompt, completion = (sum(getattr(one, f"{kind}_tokens") for one in records) for kind in ("prompt", "completion"))
    cost_pico = sum(one.cost_pico for one in records)
    assert completion == 8 and cost_pico == prompt * 150_000 + completion * 600_000
    deadline = time.monotonic() + 20
    while not any(row["requests"] == 3 for row in served("usage", "--by", "team") if row["name"] == "counted"):
        assert time.monotonic() < deadline, "control has read the journal"
    for by, name in (("key", "counts"), ("team", "counted")):
        row = next(row for row in served("usage", "--by", by) if row["name"] == name)
        cells = next(row for row in csv_of(served, by) if row["name"] == name)
        for found in (row, {field: int(value) for field, value in cells.items() if value.isdigit()}):
            told = [found[field] for field in ("requests", "prompt_tokens", "completion_tokens", "cost_pico")]
            assert told == [3, prompt, completion, cost_pico]
    everything = read_journal(served.state.journal).records
    for by in ("key", "deployment", "day"):
        rows = served("usage", "--by", by)
        assert sum(row.get("cost_pico", 0) for row in rows) == sum(one.cost_pico for one in everything)
    table = served.command("usage", "--by", "key").out
    assert any(line.split()[:3] == ["counts", "3", str(prompt)] for line in table.splitlines()), table


def csv_of(served: Served, by: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(served.command("usage", "--by", by, "--csv").out)))


def test_no_command_and_no_record_tells_a_secret(served: Served) -> None:
    made = served("keys", "create", "silent")
    told = json.dumps([served("keys", "list"), served("keys", "show", "silent"), served("usage")])
    assert made["key"] not in told and "sha256" not in told
