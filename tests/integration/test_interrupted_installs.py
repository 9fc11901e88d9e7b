"""Installers that are killed: nothing half-made is trusted, what was fetched stays fetched, no space is lost.

The campaign in short; the whole of it is `./yard dev python -m benchmarks.installs`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.installs import NAME, Site, play
from benchmarks.package_index import Counted, lock_of, serve, wheel

from modelyard import packages
from modelyard.engines.contract import Installed
from modelyard.node.environments import ensure, remove, sweep
from modelyard.node.installed_files import size_bytes
from modelyard.node.making import MARKER, InstallProgress
from modelyard.packages import uv_command
from modelyard.settings import PackageIndex

Eventually = Callable[..., Awaitable[object]]
FIRST, SECOND = "tinymaths-1.0-py3-none-any.whl", "tinykernels-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Counted]:
    for name in ("tinyengine", "tinykernels", "tinytokens", "tinymaths"):
        wheel(tmp_path / "wheels", name, payload_bytes=200_000)
    with serve(tmp_path / "wheels") as counted:
        yield counted


@pytest.fixture
def site(tmp_path: Path, index: Counted) -> Site:
    (tmp_path / "site").mkdir()
    return Site(tmp_path / "site", index)


def install(site: Site, told: Callable[[InstallProgress], object] = lambda _: None) -> Installed:
    index = PackageIndex(index_url=site.index.url)
    return ensure(site.requirements, NAME, site.state, index, told, environ=site.environ)


def fetched_into_the_cache(site: Site, module: str) -> bool:
    return any(site.state.package_cache.glob(f"archive-v*/*/{module}_data.bin"))


def processes_of_session(leader: int) -> list[int]:
    """Living processes of a session; zombies are nobody's work any more."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def killed(installer: subprocess.Popen[str]) -> None:
    installer.kill()


def interrupted(installer: subprocess.Popen[str]) -> None:
    installer.send_signal(signal.SIGINT)


def interrupted_by_a_terminal(installer: subprocess.Popen[str]) -> None:
    """Ctrl-C reaches uv too."""
    os.killpg(installer.pid, signal.SIGINT)


@pytest.mark.parametrize("end", [killed, interrupted, interrupted_by_a_terminal])
async def test_what_was_fetched_whole_is_not_fetched_again(
    site: Site, index: Counted, end: Callable[[subprocess.Popen[str]], None], eventually: Eventually
) -> None:
    index.held.add(SECOND)
    installer = site.start()
    await eventually(index.half_way.is_set)
    await eventually(lambda: all(fetched_into_the_cache(site, name) for name in ("tinymaths", "tinyengine")))
    end(installer)
    installer.wait()
    await eventually(lambda: processes_of_session(installer.pid) == [], what="its uv ends with it")
    assert installer.stdout is not None
    installer.stdout.close()
    assert site.trusted() == ()
    before = index.asked[FIRST]
    index.held.clear()
    index.release.set()
    installed = install(site)
    assert before == 1 and index.asked[FIRST] == 1, "it lay in the cache"
    assert index.asked[SECOND] == 2, "this one had come half"
    assert site.trusted() == (installed,) and site.flaws(installed) == []
    assert site.temporary_files() == []


async def test_a_killed_installer_leaves_no_space_taken_for_the_next_command(
    site: Site, index: Counted, eventually: Eventually
) -> None:
    index.held.add(SECOND)
    installer = site.start()
    await eventually(index.half_way.is_set)
    installer.kill()
    installer.wait()
    await eventually(lambda: processes_of_session(installer.pid) == [])
    assert installer.stdout is not None
    installer.stdout.close()
    [half] = [path for path in site.state.environments.iterdir() if path.is_dir()]
    assert not (half / MARKER).exists()
    assert sweep(site.state) == (half,)
    assert not half.exists()


def test_one_that_is_being_made_is_not_swept(site: Site) -> None:
    swept: list[tuple[Path, ...]] = []
    installed = install(site, lambda _: swept.append(sweep(site.state)))
    assert swept and set(swept) == {()}
    assert site.trusted() == (installed,)


# A uv that does as the real one, but tells its pid before it installs, then waits to be told to go on.
SLOW_UV = """#!/bin/sh
if [ "$1 $2" = "pip install" ]; then
    echo $$ > {folder}/pid.new; mv {folder}/pid.new {folder}/pid
    read _ < {folder}/go
fi
exec {uv} "$@"
"""


async def test_who_comes_second_waits_and_finds_it_done(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    os.mkfifo(tmp_path / "go")
    script = tmp_path / "uv"
    script.write_text(SLOW_UV.format(folder=tmp_path, uv=uv_command()[0]))
    script.chmod(0o700)
    monkeypatch.setattr(packages, "uv_command", lambda: [str(script)])
    results: list[Installed] = []
    told: list[InstallProgress] = []
    first = threading.Thread(target=lambda: results.append(install(site)))
    first.start()
    await eventually((tmp_path / "pid").exists)
    second = threading.Thread(target=lambda: results.append(install(site, told.append)))
    second.start()
    await eventually(lambda: told)
    assert told == [InstallProgress("waiting for another installation")]
    assert results == [] and site.trusted() == ()
    (tmp_path / "go").write_text("\n")
    first.join()
    second.join()
    assert len(results) == 2 and site.trusted() == (results[0],)


def test_everything_that_was_fetched_serves_without_a_network(site: Site) -> None:
    installed = install(site)
    (Path(installed.root) / MARKER).unlink()
    assert site.trusted() == ()
    offline = PackageIndex(index_url=site.index.url, offline=True)
    again = ensure(site.requirements, NAME, site.state, offline, lambda _: None, environ=site.environ)
    assert again == installed
    assert site.flaws(again) == []


def test_installers_killed_at_random_moments(tmp_path: Path) -> None:
    told: list[str] = []
    tally = play(tmp_path, kills=6, seed=3, say=told.append)
    assert tally.broken == []
    assert tally.kills == 6, told


def test_removing_the_last_environment_gives_its_space_back(site: Site) -> None:
    installed = install(site)
    assert size_bytes(site.state.package_cache) > 800_000
    remove(installed, site.state, environ=site.environ)
    assert not site.state.package_cache.exists() or size_bytes(site.state.package_cache) < 50_000


def test_what_a_kill_left_in_the_cache_unnoted_is_removed(site: Site) -> None:
    installed = install(site)
    [kept, *_] = site.state.package_cache.glob("archive-v*/*")
    shutil.copytree(kept, kept.with_name("nothing-leads-here"))
    (Path(installed.root) / MARKER).unlink()
    install(site)
    assert kept.exists() and not kept.with_name("nothing-leads-here").exists()


def test_removing_one_of_two_keeps_what_the_other_may_need(site: Site) -> None:
    both, first = site.requirements, site.requirements.packages[0]
    site.requirements = msgspec.structs.replace(
        both, packages=(first,), lock=lock_of(site.index.folder, first), import_check=first.partition("==")[0]
    )
    small = install(site)
    site.requirements = both
    large = install(site)
    remove(large, site.state, environ=site.environ)
    assert site.trusted() == (small,)
    assert site.cached() == {first.partition("==")[0]}


def test_the_campaign_runs_by_its_own_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.installs", "--help"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--kills" in done.stdout
