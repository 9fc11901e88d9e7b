"""Installers killed at random moments: what becomes of the environment, of the downloads, and of the disk.

    python -m benchmarks.installs [--kills 20] [--seed N]

The real uv installs wheels that are made on the spot from an index on loopback. In each round an installer is ended,
by SIGKILL and SIGINT in turn, at a random (seeded) sign of life: a piece that leaves the index, or a stage that the
installer tells. What must hold after each: no environment is trusted that is not whole, and no process of the
installer's is left. And in the end: the next installation finishes, every file of it is as it was packed, no
temporary file is left, and the cache is no larger than after one installation that nobody disturbed. What lies in the
cache when an installer starts is not asked for again; a kill in the instant between a package's arrival and uv's note
of it costs that package another download, so one in ten kills may."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.package_index import Counted, lock_of, serve, wheel
from modelyard.engines.contract import Installed, Requirements
from modelyard.node.diagnosis import examine
from modelyard.node.environments import list_environments, remove
from modelyard.node.installed_files import size_bytes
from modelyard.state import open_state

NAME = "tiny"
WHEELS = {"tinyengine": 300_000, "tinykernels": 900_000, "tinytokens": 120_000, "tinymaths": 500_000}
WITHIN_S = 60.0

INSTALLER = """
import signal
import sys
from pathlib import Path
import msgspec
from modelyard.engines.contract import Requirements
from modelyard.node.environments import ensure
from modelyard.settings import PackageIndex
from modelyard.state import StateDirectory
# Whoever runs us in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
given = msgspec.json.decode(sys.argv[1])
def heard(progress):
    print(progress.stage, flush=True)
requirements = msgspec.convert(given["requirements"], Requirements)
state, index = StateDirectory(Path(given["state"])), PackageIndex(index_url=given["index"])
ensure(requirements, given["name"], state, index, heard, environ=given["environ"])
"""


@dataclass
class Tally:
    """What a campaign saw. `broken` are promises that did not hold."""

    kills: int = 0
    attempts: int = 0
    finished: int = 0
    by_stage: Counter[str] = field(default_factory=Counter[str])
    broken: list[str] = field(default_factory=list[str])
    asked: int = 0
    spared: int = 0
    asked_again: int = 0
    cache_bytes: int = 0
    cache_bytes_undisturbed: int = 0


class Site:
    """A state directory, an index, and what an installer needs to work between the two."""

    def __init__(self, folder: Path, index: Counted) -> None:
        self.state = open_state(folder / "state")
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.index = index
        home = folder / "home"
        home.mkdir()
        self.environ = {"PATH": os.defpath, "HOME": str(home), "UV_NO_CONFIG": "1", "NO_PROXY": "*"}
        self.environ["TMPDIR"] = str(self.temporary)
        pins = [f"{name}==1.0" for name in WHEELS]
        self.requirements = Requirements(
            packages=tuple(pins),
            version="1.0",
            download_bytes=sum(WHEELS.values()),
            installed_bytes=sum(WHEELS.values()),
            import_check="tinyengine",
            lock=lock_of(index.folder, *pins),
        )

    def start(self) -> subprocess.Popen[str]:
        given = {
            "requirements": msgspec.to_builtins(self.requirements),
            "name": NAME,
            "state": str(self.state.root),
            "index": self.index.url,
            "environ": self.environ,
        }
        # A session of its own, so that what it leaves running can be told from everything else.
        return subprocess.Popen(
            [sys.executable, "-c", INSTALLER, msgspec.json.encode(given).decode()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            start_new_session=True,
            text=True,
        )

    def attempt(self, kill_at: int | None, number: int) -> tuple[int, str]:
        """One installation, sent signal `number` at its `kill_at`-th sign of life; (signs, the stage it was in)."""
        signs, stage, lock = 0, "start", threading.Lock()
        self.index.asked.clear()
        installer = self.start()

        def sign() -> None:
            nonlocal signs
            with lock:
                signs += 1
                if signs == kill_at:
                    installer.send_signal(number)

        self.index.on_sign = sign
        with installer:
            assert installer.stdout is not None
            for line in installer.stdout:
                stage = line.strip()
                sign()
            installer.wait(WITHIN_S)
        self.index.on_sign = lambda: None
        return signs, stage

    def cached(self) -> set[str]:
        """Packages that uv has noted as fetched: it unpacks one first and notes it a moment later; what a kill finds
        between the two is fetched again."""
        return {note.parent.name for note in self.state.package_cache.glob("wheels-v*/**/*.http")}

    def trusted(self) -> tuple[Installed, ...]:
        return list_environments(self.state)

    def flaws(self, installed: Installed) -> list[str]:
        """What is not as it was packed."""
        found = examine(installed, self.requirements, lambda _: None)
        return [f"{one.question}: {one.answer}" for one in found.findings if not one.ok]

    def temporary_files(self) -> list[str]:
        cache = self.state.package_cache
        left = [*self.temporary.iterdir(), *cache.glob(".tmp*"), *cache.glob("*/.tmp*")]
        trusted = {one.root for one in self.trusted()}
        left += [path for path in self.state.environments.iterdir() if path.is_dir() and str(path) not in trusted]
        return [str(path) for path in left]


def play(folder: Path, kills: int, seed: int, say: Callable[[str], None]) -> Tally:
    """The whole campaign, below `folder`."""
    wheels, tally, chance = folder / "wheels", Tally(), random.Random(seed)
    for name, payload_bytes in WHEELS.items():
        wheel(wheels, name, payload_bytes=payload_bytes)
    with serve(wheels) as index:
        (folder / "undisturbed").mkdir()
        calm = Site(folder / "undisturbed", index)
        signs, _ = calm.attempt(None, 0)
        tally.cache_bytes_undisturbed = size_bytes(calm.state.package_cache)
        (folder / "disturbed").mkdir()
        site = Site(folder / "disturbed", index)
        while tally.kills < kills and tally.attempts < 10 * kills:
            _disturb(site, tally, signs, chance, say)
        _finish(site, tally)
    return tally


def _disturb(site: Site, tally: Tally, signs: int, chance: random.Random, say: Callable[[str], None]) -> None:
    tally.attempts += 1
    number = signal.SIGKILL if tally.kills % 2 == 0 else signal.SIGINT
    at = chance.randint(1, signs)
    seen, stage = _attempt(site, tally, at, number)
    trusted = site.trusted()
    if seen >= at:
        tally.kills += 1
        tally.by_stage[stage] += 1
        say(f"{tally.kills:3} {number.name} at sign {at}, stage {stage}: {len(trusted)} trusted")
    for installed in trusted:
        # Done before the signal came, or by what it left to itself; then the next round begins from nothing.
        tally.broken += [f"after {number.name} at sign {at}: {flaw}" for flaw in site.flaws(installed)]
        tally.finished += 1
        remove(installed, site.state, environ=site.environ)


def _attempt(site: Site, tally: Tally, at: int | None, number: int) -> tuple[int, str]:
    before = site.cached()
    result = site.attempt(at, number)
    asked = {name for name in WHEELS if site.index.asked[f"{name}-1.0-py3-none-any.whl"]}
    tally.asked += len(asked)
    tally.spared += len(before - asked)
    tally.asked_again += len(before & asked)
    return result


def _finish(site: Site, tally: Tally) -> None:
    _attempt(site, tally, None, 0)
    trusted = site.trusted()
    if len(trusted) != 1:
        tally.broken.append(f"the last installation did not finish: {len(trusted)} environments")
    tally.broken += [flaw for installed in trusted for flaw in site.flaws(installed)]
    tally.broken += [f"left behind: {path}" for path in site.temporary_files()]
    tally.cache_bytes = size_bytes(site.state.package_cache)
    if tally.cache_bytes > 1.1 * tally.cache_bytes_undisturbed:
        tally.broken.append(f"the cache has {tally.cache_bytes} bytes, not {tally.cache_bytes_undisturbed}")
    if tally.asked_again:
        tally.broken.append(f"{tally.asked_again} packages were fetched again although they lay in the cache")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yard-installs-") as folder:
        tally = play(Path(folder), options.kills, options.seed, print)
    print(f"{tally.kills} kills in {tally.attempts} attempts, {dict(tally.by_stage)}")
    print(f"packages: {tally.asked} asked for, {tally.spared} found in the cache, {tally.asked_again} asked for again")
    print(f"cache: {tally.cache_bytes:,} bytes, after one undisturbed installation {tally.cache_bytes_undisturbed:,}")
    for line in tally.broken:
        print(f"BROKEN: {line}")
    print("every promise held" if not tally.broken else f"{len(tally.broken)} promises broken")
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
