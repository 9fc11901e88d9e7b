"""The shape of the source: layers that import only upwards in this table, no cycle, one reader of the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import modelyard
from source_rules import (
    Module,
    broad_handlers,
    calls_by_name,
    cycles,
    environment_reads,
    foreign_imports,
    import_graph,
    imported_names,
    parse,
    part_of,
    read_package,
    texts,
    word_matcher,
)

# A part imports only parts of rows above its own; parts of one row stay apart.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "settings", "clock", "state", "packages", "lifeline"),
    ("records",),
    ("spec", "hardware", "models"),
    ("engines",),
    ("simulate",),
    ("planning", "scale"),
    ("node", "gateway"),
    ("observe", "verify"),
    ("optimise", "targets"),
    ("control", "fronts"),
    ("selftest",),
    ("yard", "cli", "console"),
)
# Within the first row, the error tree is what the rest of the row speaks.
WITHIN_A_ROW = {
    ("settings", "errors"),
    ("state", "errors"),
    ("packages", "errors"),
    ("packages", "settings"),
}
# Programs run in foreign environments and fakes in bare ones: what they need of ours can be counted.
OUTSIDE: dict[str, set[str]] = {
    "programs": set(),
    "testing": {"errors", "clock", "records", "programs"},
}
# The campaigns that we ship start what we ship to misbehave.
USES_FAKES = {"selftest"}
ENGINE_MODULES = {
    "openvino": {"openvino", "openvino_genai", "openvino_tokenizers"},
    "llamacpp": {"xllamacpp"},
    "vllm": {"vllm"},
    "dequantise": {"gguf", "numpy", "tokenizers"},
}

# Where an error of any kind ends because nobody is left to tell: (module, function) -> why.
OUTERMOST_BORDERS: dict[tuple[str, str], str] = {
    ("modelyard.selftest.running", "_tried"): "a row that breaks is red, and the rows after it are tried",
    ("modelyard.programs.http1", "_run"): "one request must not end the engine's server",
    ("modelyard.programs.llamacpp_engine", "main"): "names the cause in the log, then the process ends",
    ("modelyard.programs.openvino_stepper", "main"): "names the cause in the log, then the process ends",
}

# Ollama is an engine, and also a store of models that others may read: these mean the store.
READ_A_STORE_OF_MODELS = {
    "modelyard.models.ollama",
    "modelyard.models.references",
    "modelyard.models.sources",
    "modelyard.settings",
}

DATA_PLANE_BANS = {
    "aiohttp",
    "anyio",
    "fastapi",
    "httpx",
    "pydantic",
    "requests",
    "rich",
    "starlette",
    "typer",
    "uvicorn",
}
CODE_IN_DISGUISE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
HEAVY = {"aiohttp", "fastapi", "httptools", "numpy", "pydantic", "starlette", "uvicorn", "uvloop", "yaml"}

SOURCE = Path(modelyard.__file__).parent
MODULES = read_package(SOURCE)
names_an_engine = word_matcher(
    (
        "openvino",
        "vllm",
        "sglang",
        "tensorrt-llm",
        "tensorrt_llm",
        "trtllm",
        "tgi",
        "ollama",
        "llama.cpp",
        "llamacpp",
        "xllamacpp",
    )
)


def may_import(importer: str, imported: str) -> bool:
    """Whether a module of part `importer` may import one of part `imported`; "" is the package itself."""
    if imported in ("", importer):
        return True
    if importer in OUTSIDE:
        return imported in OUTSIDE[importer]
    if imported in OUTSIDE:
        return imported == "testing" and importer in USES_FAKES
    rows = {part: row for row, parts in enumerate(LAYERS) for part in parts}
    if importer == "__main__":
        return imported == "cli"
    return rows[imported] < rows[importer] or (importer, imported) in WITHIN_A_ROW


def test_every_part_has_a_place_in_the_table() -> None:
    known = {part for row in LAYERS for part in row} | set(OUTSIDE) | {"", "__main__"}
    assert {module.part for module in MODULES.values()} <= known


def test_no_import_leads_back_to_where_it_came_from() -> None:
    assert cycles(import_graph(MODULES)) == []


def test_each_layer_imports_only_layers_above_it() -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, targets in import_graph(MODULES).items()
        for imported in sorted(targets)
        if not may_import(part_of(importer), part_of(imported))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("records", "errors", True),
        ("errors", "records", False),
        ("gateway", "node", False),
        ("node", "gateway", False),
        ("cli", "yard", False),
        ("cli", "control", True),
        ("verify", "gateway", True),
        ("programs", "errors", False),
        ("testing", "records", True),
        ("testing", "gateway", False),
        ("engines", "testing", False),
        ("selftest", "testing", True),
        ("selftest", "programs", False),
        ("control", "selftest", False),
    ],
)
def test_the_table_says_who_may_import_whom(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_the_graph_sees_imports_in_functions_and_relative_ones() -> None:
    modules = {
        "modelyard": parse("modelyard", "", is_package=True),
        "modelyard.a": parse("modelyard.a", "from . import b", is_package=True),
        "modelyard.a.b": parse("modelyard.a.b", "def f():\n  from ..c import value"),
        "modelyard.c": parse("modelyard.c", "if TYPE_CHECKING:\n  import modelyard.a.b"),
    }
    assert import_graph(modules) == {
        "modelyard": set(),
        "modelyard.a": {"modelyard.a.b"},
        "modelyard.a.b": {"modelyard.c"},
        "modelyard.c": {"modelyard.a.b"},
    }
    assert cycles(import_graph(modules)) == [["modelyard.a.b", "modelyard.c", "modelyard.a.b"]]


def programs_and_engines() -> list[tuple[Module, set[str]]]:
    """Each program with what it may import: the standard library, its siblings and its own engine."""
    programs = [module for module in MODULES.values() if module.part == "programs"]
    siblings = {name for module in programs for name in module.name.split(".")[2:]}
    found: list[tuple[Module, set[str]]] = []
    for module in programs:
        engines = [names for prefix, names in ENGINE_MODULES.items() if f".{prefix}" in module.name]
        found.append((module, siblings.union(sys.stdlib_module_names, *engines)))
    return found


def test_programs_import_only_the_standard_library_their_siblings_and_their_engine() -> None:
    programs = programs_and_engines()
    assert programs
    assert {module.name: foreign_imports(module) - allowed for module, allowed in programs} == {
        module.name: set() for module, _ in programs
    }


def test_only_settings_reads_the_environment() -> None:
    readers = {name for name, module in MODULES.items() if environment_reads(module)}
    assert readers == {"modelyard.settings"}


@pytest.mark.parametrize("source", ["os.environ['A']", "os.getenv('A')", "from os import environ", "x = os.environb"])
def test_reading_the_environment_is_recognised(source: str) -> None:
    assert environment_reads(parse("modelyard.x", source))


def test_nobody_outside_the_engines_asks_for_one_by_name() -> None:
    """A literal that is one word can be compared or looked up; a sentence for people may mention what it likes."""
    wrong = [
        f"{name}:{line}: {text!r}"
        for name, module in MODULES.items()
        if module.part not in ("engines", "programs", "testing") and name not in READ_A_STORE_OF_MODELS
        for text, line in texts(module)
        if len(text.split()) == 1 and names_an_engine(text)
    ]
    assert wrong == []


def test_nobody_outside_the_engines_imports_an_adapter() -> None:
    """The contracts and the registry are the doors."""
    doors = {
        f"modelyard.engines{door}"
        for door in (
            *("", ".builds", ".command_lines", ".contract", ".hosting", ".importing", ".locks", ".registry"),
            ".sizing",
        )
    }
    wrong = [
        f"{importer} imports {imported}"
        for importer, targets in import_graph(MODULES).items()
        for imported in targets
        if part_of(imported) == "engines" and part_of(importer) != "engines" and imported not in doors
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"), [("openvino", True), ("the vLLM engine", True), ("tgi/3", True), ("foretgift", False)]
)
def test_an_engines_name_is_recognised_as_a_word(text: str, found: bool) -> None:
    assert names_an_engine(text) is found


def test_only_the_outermost_borders_catch_everything() -> None:
    caught = {(name, function): line for name, module in MODULES.items() for function, line in broad_handlers(module)}
    assert {place: line for place, line in caught.items() if place not in OUTERMOST_BORDERS} == {}
    assert set(OUTERMOST_BORDERS) <= set(caught), "a border that is no longer there"


@pytest.mark.parametrize(
    ("handler", "swallows"),
    [
        ("except Exception: pass", True),
        ("except: pass", True),
        ("except (OSError, BaseException): pass", True),
        ("except BaseException:\n  clean_up()\n  raise", False),
        ("except OSError: pass", False),
    ],
)
def test_a_handler_that_swallows_everything_is_recognised(handler: str, swallows: bool) -> None:
    assert bool(broad_handlers(parse("modelyard.x", f"try: f()\n{handler}"))) is swallows


def test_nothing_that_is_read_can_become_code() -> None:
    wrong = [
        f"{name}:{line}: {found}"
        for name, module in MODULES.items()
        for found, line in (*imported_names(module), *calls_by_name(module, {"eval", "exec", "__import__"}))
        if found.split(".")[0] in CODE_IN_DISGUISE | {"eval", "exec", "__import__"}
    ]
    assert wrong == []


def test_the_data_plane_uses_no_web_framework_nor_http_client() -> None:
    graph = import_graph(MODULES)
    reached = {name for name in MODULES if part_of(name) == "gateway"}
    while more := {target for name in reached for target in graph[name]} - reached:
        reached |= more
    wrong = {name: used for name in reached if (used := foreign_imports(MODULES[name]) & DATA_PLANE_BANS)}
    assert wrong == {}


def test_pydantic_stays_at_the_admin_api() -> None:
    users = {name for name, module in MODULES.items() if {"pydantic", "fastapi"} & foreign_imports(module)}
    assert {part_of(name) for name in users} <= {"control", "fronts"}


def modules_loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter reports as imported while it runs with `arguments`."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    names = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {name.split(".")[0] for name in names}


def test_importing_modelyard_imports_nothing_else() -> None:
    loaded = modules_loaded_by("-c", "import modelyard") - modules_loaded_by("-c", "pass")
    assert loaded == {"modelyard"}


def test_asking_for_help_imports_nothing_heavy() -> None:
    loaded = modules_loaded_by("-c", "import sys; sys.argv[1:] = ['--help']; from modelyard.cli import main; main()")
    assert "modelyard" in loaded
    assert loaded & HEAVY == set()
