"""Making one artifact out of another with real child processes: whole, once, with lineage, or not at all."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modelyard.clock import Clock
from modelyard.engines.contract import Conversion, Installed
from modelyard.errors import ModelRefused, ModelyardError
from modelyard.models.reader import read_card
from modelyard.models.store import Store
from modelyard.node.converting import convert, find
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory

Eventually = Callable[..., Awaitable[object]]
INSTALLED = Installed(engine="e", version="1", python=sys.executable, root="/", lock_sha256="0")
HEADER = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 2}
WRITES = f"""
import pathlib, sys
source, folder = sys.argv[1], pathlib.Path(sys.argv[2])
with open(__file__ + ".runs", "a") as runs: runs.write("x")
(folder / "config.json").write_text('''{json.dumps(CONFIG)}''')
(folder / "model.safetensors").write_bytes({WEIGHTS!r})
print('progress {{"stage": "write", "done": 4, "total": 8}}', flush=True)
"""


@pytest.fixture
def store(state: StateDirectory) -> Store:
    return Store(state, Clock(wall=lambda: 1000.0))


@pytest.fixture
def parent(tmp_path: Path) -> Artifact:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return Artifact(name="m", format="gguf", path=str(path), sha256="ab" * 32, size_bytes=4, lineage="local")


LATER = Artifact(
    name="m-bf16",
    format="huggingface",
    path="",
    sha256="",
    size_bytes=8,
    lineage="de-quantised from sha256 abab",
    recommended={"default_temperature": 0.2},
)


def conversion(tmp_path: Path, program: str, recipe: str = "r/1") -> Conversion:
    path = tmp_path / "program.py"
    path.write_text(program)
    return Conversion(
        source="gguf",
        target="huggingface",
        architectures=frozenset({"llama"}),
        program=str(path),
        recipe=recipe,
        done="de-quantised",
        dtype="BF16",
        element_bytes=2,
        suffix="bf16",
    )


def silent(what: str, done: int, total: int | None) -> None: ...


def test_what_was_made_is_a_model_with_a_hash_and_a_history(store: Store, parent: Artifact, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    made = convert(conversion(tmp_path, WRITES), LATER, parent, INSTALLED, store, lambda *told: heard.append(told))
    assert ("write", 4, 8) in heard
    assert read_card(Path(made.path)).architecture == "llama"
    assert (made.name, made.format, made.lineage) == ("m-bf16", "huggingface", LATER.lineage)
    assert len(made.sha256) == 64
    assert made.size_bytes == len(WEIGHTS) + len(json.dumps(CONFIG))
    assert made.recommended == LATER.recommended
    assert {path.stat().st_mode & 0o777 for path in Path(made.path).iterdir()} == {0o400}


def test_it_is_made_once(store: Store, parent: Artifact, tmp_path: Path) -> None:
    how = conversion(tmp_path, WRITES)
    assert find(how, LATER, parent, store) is None
    first = convert(how, LATER, parent, INSTALLED, store, silent)
    assert convert(how, LATER, parent, INSTALLED, store, silent) == first == find(how, LATER, parent, store)
    assert Path(how.program + ".runs").read_text() == "x"


def test_another_recipe_makes_another_one(store: Store, parent: Artifact, tmp_path: Path) -> None:
    first = convert(conversion(tmp_path, WRITES), LATER, parent, INSTALLED, store, silent)
    second = convert(conversion(tmp_path, WRITES, "r/2"), LATER, parent, INSTALLED, store, silent)
    assert first.path != second.path
    assert first.sha256 == second.sha256


def test_one_that_was_changed_is_made_again(store: Store, parent: Artifact, tmp_path: Path) -> None:
    how = conversion(tmp_path, WRITES)
    made = convert(how, LATER, parent, INSTALLED, store, silent)
    weights = Path(made.path) / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert find(how, LATER, parent, store) is None
    assert convert(how, LATER, parent, INSTALLED, store, silent) == made


@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        ("print('error: no such architecture'); raise SystemExit(2)", ModelRefused, "no such architecture"),
        ("import sys; sys.exit('memory ran out')", ModelyardError, "memory ran out"),
        ("raise SystemExit(3)", ModelyardError, "exit code 3"),
        ("print('done')", ModelRefused, "has no config.json"),
        (WRITES + "(folder / 'evil.py').write_text('import os')", ModelRefused, "it is code"),
    ],
)
def test_what_goes_wrong_is_said_and_leaves_nothing(
    store: Store, parent: Artifact, tmp_path: Path, program: str, error: type[ModelyardError], says: str
) -> None:
    how = conversion(tmp_path, program)
    with pytest.raises(error, match=says):
        convert(how, LATER, parent, INSTALLED, store, silent)
    assert find(how, LATER, parent, store) is None
    assert [path for path in store.root.rglob("*") if path.is_file() and path.name != "lock"] == []


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_converting import INSTALLED, LATER, conversion, silent
from modelyard.models.store import Store
from modelyard.node.converting import convert
from modelyard.records.plan import Artifact
from modelyard.state import open_state
parent = Artifact(name="m", format="gguf", path="/m", sha256="ab" * 32, size_bytes=4, lineage="local")
how = conversion(Path({folder!r}), {program!r})
convert(how, LATER, parent, INSTALLED, Store(open_state(Path({state!r}))), lambda *told: print(*told, flush=True))
"""
HANGS = WRITES + 'import os, time; print(\'progress {"stage": "pid", "done": %d, "total": 8}\' % os.getpid(), '
HANGS += "flush=True); time.sleep(600)"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_an_interrupted_one_leaves_no_program_and_nothing_that_counts(
    how: signal.Signals, store: Store, state: StateDirectory, parent: Artifact, tmp_path: Path, eventually: Eventually
) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), program=HANGS, state=str(state.root))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    told = await child.stdout.readline()
    while not told.startswith(b"pid "):
        told = await child.stdout.readline()
    child.send_signal(how)
    await child.wait()
    program = Path("/proc") / told.split()[1].decode()
    await eventually(lambda: not program.exists(), what="the program ends")
    again = conversion(tmp_path, WRITES)
    assert find(again, LATER, parent, store) is None
    assert convert(again, LATER, parent, INSTALLED, store, silent).sha256
    assert list((store.root / "partial").glob("*")) == []
