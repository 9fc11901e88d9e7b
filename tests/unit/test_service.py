"""The systemd unit: what it says, that systemd takes it, and what a service manager hears from us."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from modelyard.cli import app as cli
from modelyard.cli import telling_systemd
from modelyard.cli.service import UNIT, Unit, text_of
from modelyard.errors import ModelyardError
from needs import wants_program

DEPLOYMENT = "apiVersion: modelyard/v1\nname: small\nmodel: smollm2\n"


def unit(*, system: bool = False, file: str = "/srv/modelyard.yaml", program: str = "/bin/true") -> Unit:
    return Unit(
        program=program,
        file=Path(file),
        system=system,
        run_as="daemon",
        environ=(("MODELYARD_STATE", "/srv/my state"),),
    )


def value(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_takes_the_unit_without_a_word(system: bool, tmp_path: Path) -> None:
    analyze = wants_program("systemd-analyze", package="systemd")
    (tmp_path / UNIT).write_text(text_of(unit(system=system)))
    scope = [] if system else ["--user"]
    environ = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    ended = subprocess.run(
        [analyze, *scope, "verify", "--man=no", tmp_path / UNIT], capture_output=True, text=True, env=environ
    )
    about_us = [line for line in ended.stderr.splitlines() if UNIT in line]
    assert (ended.returncode, about_us) == (0, []), ended.stderr


def test_it_starts_the_file_and_waits_until_the_route_is_open() -> None:
    text = text_of(unit())
    assert value(text, "ExecStart") == ["/bin/true up /srv/modelyard.yaml"]
    assert value(text, "Type") == ["notify"]
    assert value(text, "TimeoutStartSec") == ["infinity"]


def test_what_would_fail_again_is_not_started_again() -> None:
    final = set(value(text_of(unit()), "RestartPreventExitStatus")[0].split())
    documented = {part.split()[0] for part in cli.EXIT_CODES.removeprefix("Exit codes: ").split(" · ")}
    assert final <= documented
    assert final.isdisjoint({"1", "3", "6"}), "a crash, an index that was away and an engine that died may go better"


def test_a_service_of_the_machine_has_a_user_and_sees_little() -> None:
    text = text_of(unit(system=True))
    assert value(text, "User") == ["daemon"]
    assert value(text, "ProtectSystem") == ["strict"]
    assert value(text, "StateDirectory") == ["modelyard"]
    assert value(text, "WantedBy") == ["multi-user.target"]
    assert value(text_of(unit()), "User") == []


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/srv/a b.yaml", '"/srv/a b.yaml"'),
        ("/srv/100%.yaml", "/srv/100%%.yaml"),
        ('/srv/"x".yaml', '"/srv/\\"x\\".yaml"'),
        ("/srv/$HOME.yaml", '"/srv/$$HOME.yaml"'),
    ],
)
def test_a_path_is_one_word_whatever_stands_in_it(path: str, written: str) -> None:
    assert value(text_of(unit(file=path)), "ExecStart") == [f"/bin/true up {written}"]


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["modelyard", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    return ended.value.code


def test_it_is_written_where_systemd_looks_and_the_next_steps_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MODELYARD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("MODELYARD_EXTRA_INDEX_URL", "https://user:secret@example.invalid/simple")
    file = tmp_path / "modelyard.yaml"
    file.write_text(DEPLOYMENT)
    assert run("service", "install", str(file), monkeypatch=monkeypatch) == 0
    written = (tmp_path / "config" / "systemd" / "user" / UNIT).read_text()
    assert value(written, "ExecStart")[0].endswith(f"modelyard up {file}")
    assert value(written, "Environment") == [f"MODELYARD_STATE={tmp_path / 'state'}"]
    assert "secret" not in written
    said = capsys.readouterr().out
    assert f"systemctl --user enable --now {UNIT}" in said and "enable-linger" in said
    assert run("service", "show", str(file), monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == written


def test_a_unit_that_somebody_changed_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file, written = tmp_path / "modelyard.yaml", tmp_path / "systemd" / "user" / UNIT
    file.write_text(DEPLOYMENT)
    assert run("service", "install", str(file), monkeypatch=monkeypatch) == 0
    assert run("service", "install", str(file), monkeypatch=monkeypatch) == 0, "the same again changes nothing"
    written.write_text("mine")
    assert run("service", "install", str(file), monkeypatch=monkeypatch) == 2
    assert "says something else" in capsys.readouterr().err and written.read_text() == "mine"
    assert run("service", "install", "--replace", str(file), monkeypatch=monkeypatch) == 0
    assert value(written.read_text(), "Type") == ["notify"]


def test_a_user_that_is_not_there_is_to_be_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from modelyard.cli import service

    monkeypatch.setattr(service, "SYSTEM_FOLDER", tmp_path)
    file = tmp_path / "modelyard.yaml"
    file.write_text(DEPLOYMENT)
    service.install(file, system=True, run_as="nobody-by-this-name")
    assert "useradd --system --no-create-home nobody-by-this-name" in capsys.readouterr().out
    service.install(file, system=True, run_as="daemon", replace=True)
    assert "useradd" not in capsys.readouterr().out


def test_a_file_that_would_not_be_served_is_refused_now_and_not_at_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text(DEPLOYMENT.replace("name:", "nme:"))
    assert run("service", "show", str(file), monkeypatch=monkeypatch) == 2
    assert "nme: is not a known key" in capsys.readouterr().err
    assert run("service", "show", "--run-as", "ada", monkeypatch=monkeypatch) == 2


def test_the_service_manager_hears_what_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        telling_systemd.tell({"NOTIFY_SOCKET": str(path)}, telling_systemd.READY, "STATUS=serving small")
        assert manager.recv(1000) == b"READY=1\nSTATUS=serving small"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0modelyard-test-notify")
        telling_systemd.tell({"NOTIFY_SOCKET": "@modelyard-test-notify"}, telling_systemd.STOPPING)
        assert manager.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234"])
def test_nobody_there_to_hear_it_is_no_failure(address: str) -> None:
    telling_systemd.tell({"NOTIFY_SOCKET": address}, telling_systemd.READY)


def test_a_folder_that_may_not_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.cli import service

    (tmp_path / "config").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "modelyard.yaml"
    file.write_text(DEPLOYMENT)
    with pytest.raises(ModelyardError, match="cannot be written") as caught:
        service.install(file)
    assert caught.value.hint
