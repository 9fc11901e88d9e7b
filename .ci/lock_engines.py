"""Makes the locks of the engines' environments: `./yard dev python .ci/lock_engines.py [ENGINE ...]`, all where none
is named. Each build of an engine has its file in src/modelyard/engines/locks, named ENGINE-BUILD.txt.

Resolved is what the adapter's Requirements name, for every Python that we support and every machine that the packages
support; versions younger than a week are left out, as in the other locks, unless an adapter names them. Nothing is
installed. The index settings are those of Modelyard; they do not get into the lock."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec

from modelyard.engines.builds import builds
from modelyard.engines.contract import Requirements
from modelyard.engines.locks import LockedPackage, flaws, gpu_packages, parse, public, render
from modelyard.engines.registry import engine, engines
from modelyard.packages import uv_command, uv_environ
from modelyard.settings import PackageIndex, load

FOLDER = Path(__file__).parents[1] / "src" / "modelyard" / "engines" / "locks"
OPTIONS = (
    *("--quiet", "--universal", "--python-version", "3.11", "--only-binary", ":all:", "--generate-hashes"),
    *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--exclude-newer", "7 days"),
)
# What torch's plain wheel asks for on account of GPUs; resolving them would cost minutes, and they would go anyway.
OF_TORCH = (
    *("cuda-bindings", "cuda-toolkit", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cusparselt-cu13"),
    *("nvidia-nccl-cu13", "nvidia-nvshmem-cu13"),
)
HEAD = """Every package of this environment, with the hashes of its wheels.
Made by `./yard dev python .ci/lock_engines.py {name}`; do not edit."""


class Unresolved(Exception):
    """What uv said."""


def lock(requirements: Requirements, name: str) -> str:
    """The lock's text. In a CPU build, what the packages ask for on account of GPUs is left out."""
    index = load().index
    # Folders of wheels hold what one machine needs; the lock is for all.
    # Folders of wheels and partial mirrors hold what one machine needs; the lock is for all.
    public_only = replace(index, find_links=(), extra_index_urls=())
    # Packages ask for torch==2.13.0+cpu, which the public index does not have.
    pins = tuple(pin for pin in requirements.packages if pin.partition("==")[0] in requirements.local_builds)
    without = (*requirements.without, *(OF_TORCH if requirements.build == "cpu" else ()))
    packages = resolve(requirements.packages, public_only, without=without, instead=pins)
    unwanted = gpu_packages(f"{one.name}=={one.version}" for one in packages) if requirements.build == "cpu" else []
    kept = [one for one in packages if f"{one.name}=={one.version}" not in unwanted]
    known = {(one.name, one.version): one.sha256 for one in parse(requirements.lock)}
    whole = [
        with_hashes_of_local_builds(one, requirements.build, known.get((one.name, one.version), ()), index)
        if one.name in requirements.local_builds
        else one
        for one in kept
    ]
    return render(whole, head=HEAD.format(name=name))


def with_hashes_of_local_builds(
    package: LockedPackage, build: str, known: tuple[str, ...], index: PackageIndex
) -> LockedPackage:
    """With the hashes of the same version's local build, from folders of wheels and from indexes that have it, and with
    those that stood in the lock before: not every machine sees every index."""
    version = f"{public(package.version)}+{build}"
    folders = [Path(folder) for folder in index.find_links]
    wheels = [file for folder in folders for file in folder.glob(f"{package.name}-{version}-*.whl")]
    hashes = {*package.sha256, *known, *(sha256(file) for file in wheels)}
    try:
        found = resolve((f"{package.name}=={version}",), replace(index, find_links=()), "--no-deps")
        hashes.update(*(one.sha256 for one in found))
    except Unresolved:
        print(f"  {package.name}: no index here has {version}; {len(wheels)} in folders of wheels")
    return msgspec.structs.replace(package, version=public(package.version), sha256=tuple(sorted(hashes)))


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def resolve(
    wanted: tuple[str, ...],
    index: PackageIndex,
    *options: str,
    without: tuple[str, ...] = (),
    instead: tuple[str, ...] = (),
) -> tuple[LockedPackage, ...]:
    """What `wanted` leads to. `without` and what only they ask for is left out; `instead` takes the place of what
    packages ask for."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"asked": wanted, "--excludes": without, "--override": instead}
        paths = {what: Path(folder) / f"{what.strip('-')}.in" for what in files}
        for what, lines in files.items():
            paths[what].write_text("".join(f"{line}\n" for line in lines))
        given = [word for what in ("--excludes", "--override") for word in (what, str(paths[what]))]
        command = [*uv_command(), "pip", "compile", *OPTIONS, *options, *given, str(paths["asked"])]
        environ = uv_environ(index, load().environ)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise Unresolved(done.stderr)
    return parse(done.stdout)


def main(names: list[str]) -> int:
    FOLDER.mkdir(exist_ok=True)
    bad = 0
    for one in [engine(name) for name in names] or engines():
        for requirements in builds(one):
            if not requirements.packages or requirements.pinned_here:
                continue
            text = lock(requirements, one.name)
            file = FOLDER / f"{one.name}-{requirements.build}.txt"
            file.write_text(text)
            print(f"{file.name}: {len(parse(text))} packages")
            for flaw in flaws(msgspec.structs.replace(requirements, lock=text)):
                print(f"  {flaw}")
                bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
