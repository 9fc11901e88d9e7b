"""From one machine to another that has no network: the packaged model and the real engine, packed, carried, proved."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from commands import Command
from modelyard.cli.seven_steps import STEPS
from modelyard.engines.contract import Installed
from modelyard.models.catalogue import SMOLLM2
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory, open_state
from yards import processes_of

pytestmark = pytest.mark.acceptance

# Nobody listens there: whoever asked an index or a hub in spite of what it was told would fail.
DEAD = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Isolated(Command):
    """A command on a machine that reaches nothing: an empty home, dead addresses for everything, its own loopback
    where this machine allows that."""

    home: Path = Path("/nonexistent")
    offline: bool = True

    @property
    def environ(self) -> dict[str, str]:
        dead = dict.fromkeys(("MODELYARD_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_INDEX_URL", "HF_ENDPOINT"), DEAD)
        found = {"PATH": "/usr/bin:/bin", "HOME": str(self.home), "MODELYARD_STATE": str(self.state), **dead}
        return (
            found
            | {"PIP_CONFIG_FILE": "/dev/null", "UV_NO_CONFIG": "1"}
            | ({"MODELYARD_OFFLINE": "1"} if self.offline else {})
        )


@pytest.fixture(scope="module")
def packed(
    openvino: Installed, smollm2: Artifact, kept_state: StateDirectory, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("carried") / "smollm2.tar"
    made = Command(kept_state.root)("models", "pack", "smollm2", "-o", str(out), "--json", check=True).value
    assert made["size_bytes"] > SMOLLM2.file.size_bytes
    return out


@pytest.fixture
def there(tmp_path: Path) -> Iterator[StateDirectory]:
    state = open_state(tmp_path / "there")
    yield state
    Command(state.root)("down")
    assert processes_of(state) == {}
    shutil.rmtree(state.sockets, ignore_errors=True)


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "no-index-answers"])
def test_a_packed_deployment_serves_where_nothing_can_be_fetched(
    packed: Path, there: StateDirectory, tmp_path: Path, offline: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = Isolated(there.root, home=home, offline=offline)
    file = tmp_path / "modelyard.yaml"
    done = command("models", "unpack", str(packed), "--file", str(file), "--json", check=True).value
    assert done["models"] == ["smollm2"] and done["engines"][0].startswith("openvino ")
    file.write_text(file.read_text() + "gateway: {port: 0}\n")
    lines = command("up", "-d", "--json", str(file), check=True).lines
    assert [line["step"] for line in lines[:-1]] == list(STEPS)
    assert {line["step"]: line["result"] for line in lines[:-1]}["verification"] == "19 of 19 checks green"
    with openai.OpenAI(base_url=lines[-1]["url"], api_key=lines[-1]["key"], max_retries=0) as client:
        answer = client.completions.create(
            model="smollm2", prompt="The capital of France is", max_tokens=4, temperature=0
        )
    assert "Paris" in answer.choices[0].text


def test_another_pack_than_the_one_that_was_made_is_refused(
    packed: Path, there: StateDirectory, tmp_path: Path
) -> None:
    refused = Command(there.root)(
        "models", "unpack", str(packed), "--file", str(tmp_path / "x.yaml"), "--sha256", "0" * 64
    )
    assert refused.code == 2 and "another pack" in refused.err


def has_private_network() -> bool:
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


def test_unpacking_needs_no_network_at_all(packed: Path, there: StateDirectory, tmp_path: Path) -> None:
    """In a network of its own that has no interface up; serving needs loopback, unpacking and planning do not."""
    if shutil.which("unshare") is None or not has_private_network():
        pytest.skip("this machine gives no private network to unprivileged commands")
    command = Isolated(there.root, home=tmp_path)
    for arguments in (
        ["models", "unpack", str(packed), "--file", str(tmp_path / "modelyard.yaml")],
        ["plan", str(tmp_path / "modelyard.yaml")],
        ["models", "verify"],
    ):
        alone = ["unshare", "-rn", *command._argv(arguments)]
        done = subprocess.run(alone, env=command.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
