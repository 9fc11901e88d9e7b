"""`modelyard models` as people use it: fetch, list, show, verify, remove, clean, pack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commands import Command
from hubs import Fault, Hub, serving, sha256
from modelyard.control import wanted as desired
from modelyard.models.derived import Derived
from modelyard.models.store import Store
from modelyard.models.stored import StoredArtifact
from modelyard.state import StateDirectory
from yards import fake_wanted

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import msgspec
from models_on_disk import folder, gguf_of

REFERENCE = "hf://someone/Tiny-Chat-GGUF:Q8_0"
CONTENT = gguf_of(100_000)


@dataclass(frozen=True)
class WithHub(Command):
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, **self.more}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as made:
        made.add("someone/Tiny-Chat-GGUF", {"Tiny-Chat-Q8_0.gguf": CONTENT})
        yield made


@pytest.fixture
def command(state: StateDirectory, hub: Hub, tmp_path: Path) -> WithHub:
    return WithHub(state.root, more={"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")})


def test_a_model_is_fetched_listed_shown_verified_and_removed(
    command: WithHub, hub: Hub, state: StateDirectory
) -> None:
    pinned = f"hf://someone/Tiny-Chat-GGUF@{hub.branches['someone/Tiny-Chat-GGUF', 'main']}:Q8_0"
    fetched = command("models", "fetch", REFERENCE, "--json", check=True).value
    assert fetched["sha256"] == sha256(CONTENT)
    assert [one["name"] for one in command("models", "list", "--json", check=True).value] == ["smollm2", pinned]
    assert f"\n{REFERENCE} " in command("models", "list", check=True).out
    shown = command("models", "show", REFERENCE, check=True).out
    assert "llama" in shown and f"fetched as {pinned}" in shown
    assert command("models", "verify", "--json", check=True).value == [{"name": pinned, "ok": True}]
    assert "as they were stored" in command("models", "verify", REFERENCE, check=True).out
    removed = command("models", "remove", REFERENCE, "--json", check=True).value
    assert removed == {"name": pinned, "freed_bytes": len(CONTENT)}
    assert Store(state).stored() == [] and not list(Path(state.store / "blobs").rglob("*.gguf"))


def test_a_damaged_model_is_found_by_verify(command: WithHub, state: StateDirectory) -> None:
    path = Path(command("models", "fetch", REFERENCE, "--json", check=True).value["path"])
    path.chmod(0o600)
    path.write_bytes(b"z" + CONTENT[1:])
    done = command("models", "verify")
    assert done.code == 4 and "the disk is failing or someone changed it" in done.err
    assert command("models", "verify", "--json").value[0]["ok"] is False


def test_a_model_that_is_served_is_not_removed(command: WithHub, state: StateDirectory) -> None:
    stored = fetched(command, state)
    wanted = fake_wanted("mine")
    [replica] = wanted.plan.replicas
    replica = msgspec.structs.replace(replica, artifact=Store(state).served(stored))
    desired.save(state, msgspec.structs.replace(wanted, plan=msgspec.structs.replace(wanted.plan, replicas=(replica,))))
    done = command("models", "remove", stored.name)
    assert done.code == 2 and "is served as mine" in done.err
    assert Store(state).find(stored.name) == stored


def test_what_was_made_here_is_listed_verified_and_removed_too(
    command: WithHub, state: StateDirectory, tmp_path: Path
) -> None:
    store = Store(state)
    parent = store.served(fetched(command, state))
    wanted = msgspec.structs.replace(parent, name="Tiny-BF16", format="huggingface", sha256="", lineage="made of Tiny")
    with store.writing() as writer:
        made = writer.partial_folder() / "Tiny-BF16"
        made.mkdir()
        for name, content in folder(1000).items():
            (made / name).write_bytes(content)
        artifact = Derived(store).keep(writer, made, wanted, parent, "recipe/v1")
    [(key, _)] = Derived(store).made()
    assert command("models", "list", "--json", check=True).value[-1] == {
        "name": key,
        "summary": "Tiny-BF16: made of Tiny",
        "here": True,
    }
    command("models", "verify", key, check=True)
    weights = Path(artifact.path) / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"z")
    assert command("models", "verify", key).code == 4
    assert command("models", "remove", key, "--json", check=True).value["freed_bytes"] > 2000
    assert Derived(store).made() == [] and not Path(artifact.path).exists()
    assert store.stored(), "what it was made of stays"


def fetched(command: WithHub, state: StateDirectory) -> StoredArtifact:
    command("models", "fetch", REFERENCE, check=True)
    [stored] = Store(state).stored()
    return stored


def test_an_interrupted_fetch_is_cleaned_away_when_told_to(command: WithHub, hub: Hub, state: StateDirectory) -> None:
    hub.faults["Tiny-Chat-Q8_0.gguf"].extend([Fault(cut_after=40_000), Fault(status=410)])
    assert command("models", "fetch", REFERENCE).code == 4
    assert command("models", "clean", "--json", check=True).value == {"freed_bytes": 40_000}
    assert list((state.store / "incoming").iterdir()) == []


def test_nobodys_name_is_told(command: WithHub) -> None:
    done = command("models", "remove", "nobody")
    assert done.code == 2 and "'nobody' is not in the store" in done.err and "models list" in done.err


def test_an_unverified_source_is_said_to_be_one(command: WithHub, hub: Hub) -> None:
    hub.blobs["x.gguf"] = CONTENT
    assert "unverified source" in command("models", "show", f"{hub.url}/x.gguf", check=True).out
    assert "unverified source" in command("models", "fetch", f"{hub.url}/x.gguf", check=True).out


def test_what_is_no_pack_and_what_would_be_overwritten_are_told(command: WithHub, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello")
    done = command("models", "unpack", str(tmp_path / "x.tar"))
    assert done.code == 2 and "is no pack" in done.err
