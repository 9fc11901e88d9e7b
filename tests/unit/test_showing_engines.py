"""What `modelyard engines list` says is proved: deployments whose evidence speaks for the very installation."""

from __future__ import annotations

import time
from typing import Literal

import msgspec
import pytest

from modelyard.cli.showing_engines import look
from modelyard.engines.contract import Installed, Requirements
from modelyard.engines.fake import FakeAdapter
from modelyard.node.environments import folder_of
from modelyard.node.making import MARKER, Complete
from modelyard.records.base import encode
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint
from modelyard.state import StateDirectory
from modelyard.verify.evidence import save
from modelyard.verify.report import Report

Verdict = Literal["green", "red"]


class Tiny(FakeAdapter):
    name = "tiny"
    requirements = Requirements(
        packages=("tinyengine==1.0",), version="1.0", download_bytes=1, installed_bytes=2, import_check="tinyengine"
    )


def installed(state: StateDirectory, requirements: Requirements = Tiny.requirements) -> Installed:
    """An environment as far as its marker tells."""
    root = folder_of(requirements, "tiny", state)
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").touch()
    made = Installed(engine="tiny", version="1.0", python=str(root / "bin" / "python"), root=str(root), lock_sha256="l")
    (root / MARKER).write_bytes(encode(Complete(installed=made, packages=(), freeze=(), made_at=1.0)))
    return made


def prove(state: StateDirectory, name: str, engine: str, *verdicts: Verdict, expires_in_s: float = 60) -> None:
    now = time.time()
    evidence = tuple(
        Evidence(
            deployment=name,
            check=f"check-{number}",
            claim="it holds",
            bound="always",
            predicted="yes",
            measured="yes",
            verdict=verdict,
            command="modelyard verify",
            at=now,
            expires_at=now + expires_in_s,
            duration_s=0.1,
            fingerprint=Fingerprint(artifact="a", engine=engine, configuration="c", machine="m"),
        )
        for number, verdict in enumerate(verdicts)
    )
    save(state, Report(deployment=name, evidence=evidence, advice={}, duration_s=0.1))


def test_a_deployment_that_is_green_with_this_installation_is_named(state: StateDirectory) -> None:
    made = installed(state)
    prove(state, "assistant", made.fingerprint, "green", "green")
    prove(state, "red", made.fingerprint, "green", "red")
    prove(state, "expired", made.fingerprint, "green", expires_in_s=-1)
    prove(state, "elsewhere", "another engine", "green")
    [tiny] = look([Tiny()], state)
    assert tiny.installed == made
    assert [build.proved for build in tiny.builds] == [("assistant",)]


def test_nothing_installed_is_nothing_proved(state: StateDirectory) -> None:
    [tiny] = look([Tiny()], state)
    assert tiny.installed is None and tiny.builds[0].proved == ()


@pytest.mark.parametrize("change", [{"packages": ("tinyengine==0.9",)}, {"lock": "another"}])
def test_what_another_version_made_is_shown_as_older(state: StateDirectory, change: dict[str, object]) -> None:
    older = installed(state, msgspec.structs.replace(Tiny.requirements, **change))
    [tiny] = look([Tiny()], state)
    assert tiny.installed is None and tiny.builds[0].older == (older,)
