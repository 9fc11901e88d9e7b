"""The peers' own installations: one environment for each lock in benchmarks/locks, under .cache, made by uv.

A lock names every package of the closure with its hashes, so that a release that was replaced or poisoned later is
refused. LiteLLM 1.82.8 carried its thief in a `.pth` file, which Python runs at every start (BerriAI/litellm#24512):
an environment with such a file that we do not know is not used either."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.subjects import ROOT, CannotMeasure
from modelyard import settings
from modelyard.errors import EnvironmentFailed
from modelyard.packages import explain_uv_failure, uv_environ, uv_process

LOCKS = Path(__file__).parent / "locks"
CACHE = ROOT / ".cache" / "peers"
COMPLETE = "complete"
# Of virtualenv (uv writes it into each venv) and of setuptools.
_KNOWN_HOOKS = {"_virtualenv.pth", "distutils-precedence.pth"}


def programs(name: str) -> Path:
    """The folder of the peer's programs, installed where it is not yet. Raises CannotMeasure with the reason."""
    lock = LOCKS / f"{name}.lock"
    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]
    root = CACHE / f"{name}-{key}"
    if not (root / COMPLETE).exists():
        shutil.rmtree(root, ignore_errors=True)
        try:
            _install(name, lock, root)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
    return root / "bin"


def _install(name: str, lock: Path, root: Path) -> None:
    print(f"installing {name} into {root} ...", file=sys.stderr, flush=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    _uv("venv", "--quiet", "--no-project", "--python", sys.executable, str(root))
    options = ("--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:")
    _uv("pip", "install", *options, "--python", str(root / "bin" / "python"), "-r", str(lock))
    if hooks := unknown_hooks(root.glob("lib/python*/site-packages/*.pth")):
        raise CannotMeasure(f"its installation brings code that every start of Python would run: {', '.join(hooks)}")
    (root / COMPLETE).touch()


def _uv(*arguments: str) -> None:
    chosen = settings.load()
    with tempfile.TemporaryFile() as said:
        try:
            environ = uv_environ(chosen.index, chosen.environ)
            with uv_process(arguments, environ, cwd=CACHE, stderr=said.fileno()) as child:
                code = child.wait()
        except EnvironmentFailed as error:
            raise CannotMeasure(f"it cannot be installed: {error}") from error
        if code != 0:
            said.seek(0)
            cause, remedy = explain_uv_failure(said.read().decode(errors="replace"))
            raise CannotMeasure(f"it cannot be installed: {' '.join(cause.split())}; {remedy}")


def unknown_hooks(files: Iterable[Path]) -> list[str]:
    """The `.pth` files that run code and are not known to us."""
    return sorted(
        file.name
        for file in files
        if file.name not in _KNOWN_HOOKS
        and any(line.startswith(("import ", "import\t")) for line in file.read_text(errors="replace").splitlines())
    )
