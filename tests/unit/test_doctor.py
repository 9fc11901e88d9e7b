"""`modelyard doctor`: what it finds in a set-up, what it says of engines, and that it changes nothing."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from modelyard import settings
from modelyard.cli import doctor, doctor_setup, doctor_show
from modelyard.cli.doctor_engines import view
from modelyard.cli.doctor_setup import judge_index, judge_setup
from modelyard.cli.doctor_state import judge_address, judge_state
from modelyard.engines.contract import Installed
from modelyard.engines.registry import engine, engines
from modelyard.errors import EnvironmentFailed, ModelyardError
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.machine import probe
from modelyard.hardware.rates import EngineRates, Rates, Spread, save_rates
from modelyard.models.store import Store
from modelyard.records.base import encode
from modelyard.records.finding import Finding
from modelyard.records.listening import Listening
from modelyard.records.plan import Rejected
from modelyard.settings import Settings
from modelyard.spec.wanted import Gateway
from modelyard.state import StateDirectory, locked, open_state

PLAIN = {"PATH": os.defpath, "HOME": "/nonexistent"}


def setup(environ: Mapping[str, str], check: str) -> list[Finding]:
    loaded = settings.load({**PLAIN, **environ})
    return [one for one in judge_setup(loaded) if one.check == check]


def of_state(state: StateDirectory) -> tuple[Finding, ...]:
    """Without what is said of sockets: the path of a test's folder may be a long one."""
    return tuple(one for one in judge_state(state) if one.check != "sockets")


def only(findings: tuple[Finding, ...] | list[Finding]) -> Finding:
    (finding,) = findings
    assert finding.what and (finding.why or finding.severity == "note")
    return finding


def test_a_fresh_state_directory_is_well_and_is_not_made_by_looking(tmp_path: Path) -> None:
    root = tmp_path / "state"
    assert of_state(StateDirectory(root)) == ()
    assert not root.exists()


def test_a_state_directory_in_use_is_well(state: StateDirectory) -> None:
    assert of_state(state) == ()


def test_a_folder_that_may_not_be_written_prevents_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert only(judge_state(StateDirectory(file / "state"))).what == f"{file} is not a folder"
    monkeypatch.setattr(os, "access", lambda *_: False)
    finding = only(judge_state(StateDirectory(tmp_path / "state")))
    assert finding.severity == "error" and "may not be written" in finding.what


def test_a_newer_layout_prevents_serving(state: StateDirectory) -> None:
    state.layout.write_text("99\n")
    finding = only(judge_state(state))
    assert finding.severity == "error" and "layout 99" in finding.what


def test_other_users_who_may_look_in_are_warned_of(state: StateDirectory) -> None:
    state.root.chmod(0o755)
    assert only(of_state(state)).remedy == f"chmod 700 {state.root}"


def test_a_long_path_moves_the_sockets_and_is_told(tmp_path: Path) -> None:
    long = StateDirectory(tmp_path / ("x" * 80))
    finding = only(judge_state(long))
    assert finding.severity == "note" and str(long.sockets) in finding.what


def test_what_a_killed_yard_left_is_told(state: StateDirectory) -> None:
    state.yard.write_text("{}")
    (state.launches / "one.json").write_text("{}")
    finding = only(of_state(state))
    assert finding.severity == "note" and "1 of its launches is on record" in finding.what


def test_a_port_that_is_taken_prevents_serving(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = only(judge_address(StateDirectory(tmp_path), Gateway(port=port)))
    assert finding.severity == "error" and str(port) in finding.what and "--port 0" in finding.remedy
    assert judge_address(StateDirectory(tmp_path), Gateway(port=port)) == ()


def test_where_a_yard_serves_already_its_address_is_told_and_not_tried(state: StateDirectory) -> None:
    where = Listening(
        url="http://127.0.0.1:1/v1", admin="http://127.0.0.1:2", pid=os.getpid(), started_at=0.0, version="0"
    )
    state.yard.write_bytes(encode(where))
    with locked(state.yard_lock, holding="serving"):
        finding = only(judge_address(state, Gateway(port=1)))
        assert of_state(state) == ()
    assert (finding.severity, finding.check) == ("note", "address") and where.url in finding.what


@pytest.mark.parametrize(
    ("environ", "severity", "words"),
    [
        ({"HTTPS_PROXY": "http://user:secret@proxy.example:3128"}, "warning", "NO_PROXY"),
        ({"https_proxy": "http://proxy.example", "no_proxy": "localhost,.corp"}, "note", "proxy.example"),
    ],
)
def test_a_proxy_is_told_without_its_password(environ: dict[str, str], severity: str, words: str) -> None:
    finding = only(setup(environ, "proxy"))
    assert finding.severity == severity and words in finding.what
    assert "secret" not in repr(finding)


def test_no_proxy_is_nothing_to_tell() -> None:
    assert setup({}, "proxy") == []


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MODELYARD_SATTE": "/x"}, "did you mean MODELYARD_STATE?"),
        ({"LD_PRELOAD": "/x.so"}, "unset LD_PRELOAD"),
        ({"PYTHONPATH": "/x"}, "unset PYTHONPATH"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"MODELYARD_INDEX_URL": "http://a.example", "PIP_INDEX_URL": "http://b.example"}, ""),
    ],
)
def test_variables_that_mislead_are_found(environ: dict[str, str], words: str) -> None:
    assert only(setup(environ, "variables")).remedy == words


def test_our_own_variables_and_those_of_tests_mean_something() -> None:
    known = {name: "1" for name in ("MODELYARD_OFFLINE", "MODELYARD_COMMAND", "MODELYARD_TEST_STATE", "MODELYARD_CI")}
    assert setup({**known, "MODELYARD_LEASE_S": "5"}, "variables") == []


def test_every_variable_that_the_settings_read_is_known_to_the_doctor() -> None:
    import inspect
    import re

    read = set(re.findall(r"MODELYARD_[A-Z_]+[A-Z]", inspect.getsource(settings)))
    assert read <= doctor_setup._OURS


def test_a_ca_file_that_is_none_prevents_installing(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for file in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        assert only(setup({"MODELYARD_CA_FILE": str(file)}, "certificates")).severity == "error"
    assert setup({}, "certificates") == []


def test_a_missing_package_client_prevents_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> list[str]:
        raise EnvironmentFailed("the package client uv is not installed beside Modelyard", hint="pip install uv")

    monkeypatch.setattr(doctor_setup, "uv_command", absent)
    assert only(setup({}, "uv")).remedy == "pip install uv"


def test_a_python_that_engines_have_no_wheels_for_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert only(setup({}, "python")).severity == "warning"


@pytest.mark.parametrize(
    ("environ", "needed", "severity"),
    [
        ({"MODELYARD_FIND_LINKS": "/wheels"}, True, "note"),
        ({}, True, "error"),
        ({}, False, "note"),
    ],
)
def test_offline_no_index_is_asked(
    environ: dict[str, str], needed: bool, severity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an index is asked although the settings say offline")

    monkeypatch.setattr(doctor_setup, "uv_process", forbidden)
    loaded = settings.load({**PLAIN, "MODELYARD_OFFLINE": "1", **environ})
    finding = only(judge_index(loaded, needed=needed))
    assert (finding.severity, finding.check) == (severity, "package index")


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(("needed", "severity"), [(True, "error"), (False, "warning")])
def test_an_index_that_nobody_answers_for_is_found_by_the_package_client(needed: bool, severity: str) -> None:
    loaded = settings.load({**PLAIN, "MODELYARD_INDEX_URL": f"http://127.0.0.1:{closed_port()}/simple"})
    finding = only(judge_index(loaded, needed=needed))
    assert finding.severity == severity and "out of reach" in finding.what


def test_an_index_that_hangs_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_setup, "_INDEX_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        finding = only(judge_index(settings.load({**PLAIN, "MODELYARD_INDEX_URL": url}), needed=True))
    assert "did not answer within 0.3 s" in finding.what


def test_a_folder_of_wheels_is_an_index_that_answers(tmp_path: Path) -> None:
    simple = tmp_path / "simple" / "msgspec"
    simple.mkdir(parents=True)
    wheel = "msgspec-9.9.9-py3-none-any.whl"
    _write_wheel(simple / wheel, "msgspec", "9.9.9")
    (simple / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{wheel}">{wheel}</a></body></html>')
    loaded = settings.load({**PLAIN, "MODELYARD_INDEX_URL": (tmp_path / "simple").as_uri()})
    assert judge_index(loaded, needed=True) == ()


def _write_wheel(path: Path, name: str, version: str) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as wheel:
        folder = f"{name}-{version}.dist-info"
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")


def test_an_engine_says_what_it_would_take_and_what_to_type() -> None:
    machine = msgspec.structs.replace(probe(accelerators=()), os="linux", arch="x86_64")
    needs = engine("openvino").requirements
    seen = view(engine("openvino"), machine, "3.11.7", (), 1 << 40, None)
    assert (seen.runs, seen.build, seen.installed, seen.remedy) == (
        True,
        "cpu",
        False,
        "modelyard engines install openvino",
    )
    assert (seen.download_bytes, seen.installed_bytes) == (needs.download_bytes, needs.installed_bytes)
    made = Installed(engine="openvino", version=needs.version, python="/p", root="/r", lock_sha256="0")
    assert view(engine("openvino"), machine, "3.11.7", (made,), 0, None).installed
    older = msgspec.structs.replace(made, version="1")
    assert not view(engine("openvino"), machine, "3.11.7", (older,), 1 << 40, None).installed
    full = view(engine("openvino"), machine, "3.11.7", (), 1000, None)
    assert not full.runs and "1000 B are free" in full.reason


def test_an_engine_that_cannot_run_here_says_why() -> None:
    machine = msgspec.structs.replace(probe(accelerators=()), os="linux", arch="s390x")
    seen = view(engine("openvino"), machine, "3.11.7", (), 1 << 40, None)
    assert (seen.runs, seen.build) == (False, None) and "this is s390x" in seen.reason


def test_an_engine_of_our_own_needs_no_environment() -> None:
    seen = view(engine("fake"), probe(accelerators=()), "3.11.7", (), 0, None)
    assert seen.runs and seen.installed and seen.remedy == ""


@pytest.fixture
def quiet_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of a set-up where nothing is asked of a network."""

    def make(**environ: str) -> Settings:
        state = str(tmp_path / "state")
        return settings.load({**PLAIN, "MODELYARD_STATE": state, "MODELYARD_OFFLINE": "1", **environ})

    monkeypatch.setattr(doctor, "Gateway", lambda: Gateway(port=0))
    return make


def test_a_report_has_every_engine_and_its_worst_findings_first(quiet_settings: Callable[..., Settings]) -> None:
    report = doctor.examine(quiet_settings(), measure_now=False, quiet=True)
    assert [one.name for one in report.engines] == [one.name for one in engines()]
    order = [("error", "warning", "note").index(one.severity) for one in report.findings]
    assert order == sorted(order)
    # Offline, without wheels and without an engine, nothing can be served.
    assert not report.well and report.rates is None
    assert not Path(report.state).exists()
    assert any(one.remedy == "modelyard doctor --measure" for one in report.findings)


def test_what_was_measured_long_ago_or_in_a_crowd_is_said(quiet_settings: Callable[..., Settings]) -> None:
    loaded = quiet_settings()
    state = open_state(loaded.state_dir)
    even = Spread.of([1e10])
    rates = Rates(
        machine=probe().fingerprint(),
        at=time.time() - 40 * 86_400,
        threads=2,
        buffer_bytes=1,
        read_bytes_per_s=even,
        copy_bytes_per_s=even,
        stolen=0.5,
    )
    save_rates(state, rates)
    report = doctor.examine(loaded, measure_now=False, quiet=True)
    assert report.rates == rates
    told = only([one for one in report.findings if one.check == "measurement"])
    assert told.severity == "warning"
    assert all(words in told.what for words in ("hypervisor gave 50%", "40 days ago", "no engine"))


@pytest.mark.parametrize(("stolen", "kept"), [(0.0, True), (0.9, False)])
def test_a_measurement_in_a_crowd_is_shown_and_not_kept_beside_a_calm_one(
    stolen: float, kept: bool, quiet_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = quiet_settings()
    even = Spread.of([1e10])
    calm = Rates(
        machine=probe().fingerprint(),
        at=time.time() - 60,
        threads=2,
        buffer_bytes=1,
        read_bytes_per_s=even,
        copy_bytes_per_s=even,
    )
    save_rates(open_state(loaded.state_dir), calm)
    now = msgspec.structs.replace(calm, at=time.time(), stolen=stolen)

    def measured(state: StateDirectory, *_: object) -> Rates:
        save_rates(state, now)
        return now

    monkeypatch.setattr(doctor, "measure", measured)
    report = doctor.examine(loaded, measure_now=True, quiet=True)
    assert report.rates == now
    said = [one.what for one in report.findings if "is not kept" in one.what]
    assert bool(said) is not kept


def test_a_measurement_that_fails_leaves_what_was_known_and_its_reason(
    quiet_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Rates:
        raise ModelyardError("too little memory to measure in", hint="end something")

    monkeypatch.setattr(doctor, "measure", failing)
    report = doctor.examine(quiet_settings(), measure_now=True, quiet=True)
    assert report.rates is None
    assert any(one.what == "too little memory to measure in" for one in report.findings)


def test_a_stored_model_that_was_damaged_is_a_finding_and_no_crash(
    quiet_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = quiet_settings()
    open_state(loaded.state_dir)
    (tmp_path / "model.gguf").write_bytes(b"GGUF and then nothing")
    monkeypatch.setattr(Store, "stored", lambda _: [SimpleNamespace(name="smollm2")])
    monkeypatch.setattr(Store, "path_of", lambda _, __: tmp_path / "model.gguf")
    report = doctor.examine(loaded, measure_now=False, quiet=True)
    finding = only([one for one in report.findings if one.check == "models"])
    assert finding.severity == "warning" and str(tmp_path / "model.gguf") in finding.remedy


def test_accelerators_that_no_engine_would_use_are_told_with_the_reasons() -> None:
    gpu = Accelerator(vendor="nvidia", index=0, name="H100")
    machine = probe(accelerators=(gpu, gpu))
    plain = view(engine("fake"), machine, "3.11.7", (), 1 << 40, None)
    finding = only(doctor._idle_accelerators(machine, (plain,)))
    assert (finding.severity, finding.what) == ("note", "no engine would use H100")
    old = Rejected(what="build cuda", reason="needs CUDA 12.8: update the driver")
    refusing = msgspec.structs.replace(plain, rejected=(old,))
    finding = only(doctor._idle_accelerators(machine, (refusing,)))
    assert finding.severity == "warning" and "fake's build cuda: needs CUDA 12.8" in finding.why
    using = msgspec.structs.replace(plain, build="cuda")
    assert doctor._idle_accelerators(machine, (refusing, using)) == ()
    assert doctor._idle_accelerators(probe(accelerators=()), (plain,)) == ()


def shown(report: doctor.Report) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    doctor_show.show(report.machine, report.details, report.rates, report.engines, report.findings, console)
    console.file.close()
    return console.export_text()


def test_everything_that_was_found_is_shown(quiet_settings: Callable[..., Settings]) -> None:
    report = doctor.examine(quiet_settings(), measure_now=False, quiet=True)
    gpu = Accelerator(
        vendor="nvidia", index=0, name="H100 [x]", memory_bytes=80 << 30, free_bytes=1 << 30, driver="570"
    )
    spread = Spread.of([2e10, 2.2e10])
    rates = Rates(
        machine="m",
        at=time.time() - 120,
        threads=2,
        buffer_bytes=1,
        read_bytes_per_s=spread,
        copy_bytes_per_s=spread,
        engines=(
            EngineRates(
                engine="some",
                version="1",
                gemm_per_s={"f32": Spread.of([1.5e11])},
                weight_read_bytes_per_s={"u8": spread},
                layer_overhead_s=Spread.of([2e-5]),
                kernels={"f32": "brgemm_avx512"},
            ),
        ),
    )
    machine = msgspec.structs.replace(report.machine, accelerators=(gpu,))
    text = shown(msgspec.structs.replace(report, machine=machine, rates=rates))
    for words in (
        report.machine.cpu_model,
        "H100 [x] · 80 GiB, 1.0 GiB free · driver 570",
        "measured 2 min ago, 2 threads",
        "21 GB/s  (20 to 22)",
        "150 Gop/s  (150 to 150)  brgemm_avx512",
        "20 µs",
        *(one.what for one in report.findings),
        *(one.name for one in report.engines),
    ):
        assert words in text, (words, text)


@pytest.mark.parametrize(
    ("severities", "last"),
    [
        ((), "all is well"),
        (("note",), "all is well"),
        (("warning", "warning", "note"), "nothing prevents serving; 2 warnings"),
        (("error", "warning"), "1 of these prevents serving"),
    ],
)
def test_the_last_line_says_whether_all_is_well(
    severities: tuple[Any, ...], last: str, quiet_settings: Callable[..., Settings]
) -> None:
    report = doctor.examine(quiet_settings(), measure_now=False, quiet=True)
    findings = tuple(Finding(severity=one, check="x", what="something", why="because") for one in severities)
    assert shown(msgspec.structs.replace(report, findings=findings)).strip().splitlines()[-1] == last
