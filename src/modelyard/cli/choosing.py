"""What `up` and `plan` serve when nothing is named: the folder's deployment file, else the packaged model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.engines.contract import Requirements
from modelyard.models.catalogue import SMOLLM2, Entry
from modelyard.spec.sizes import show

PACKAGED = SMOLLM2
FILE_NAMES = ("modelyard.yaml", "modelyard.yml")
MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """`what` goes on as if it had been typed; `named` says that it was."""

    what: str
    named: bool
    nearby: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        return self.what.endswith((".yaml", ".yml"))


def choose(what: str | None, folder: Path) -> Choice:
    """Nothing is started for a file merely because it lies there, but one that is ours by name says what is wanted."""
    if what is not None:
        return Choice(what, named=True)
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return Choice(name, named=False)
    nearby = sorted(path.name for path in folder.glob("*.gguf") if path.is_file())
    return Choice(PACKAGED.name, named=False, nearby=tuple(nearby))


@dataclass(frozen=True, slots=True)
class Outlook:
    """What serving the packaged model will do here. `here` names what need not be fetched any more."""

    command: str
    state: str
    address: str
    engine: str
    requirements: Requirements
    entry: Entry
    here: Collection[str]
    detached: bool


def outlook(look: Outlook, nearby: Sequence[str]) -> list[str]:
    """Lines for a person who named nothing: what comes, how large, where to, how long, how it is undone."""
    model, needs, us = look.entry, look.requirements, look.command
    lines = ["Nothing was named: this serves the packaged model.", f"  {model.name:<10} {model.summary}"]
    fetched = [] if model.name in look.here else [(f"the model {show(model.file.wheel_bytes)}", model.file.size_bytes)]
    if needs.packages and look.engine not in look.here:
        fetched.append((f"the engine {look.engine} {show(needs.download_bytes)}", needs.installed_bytes))
    if fetched:
        takes = show(sum(size for _, size in fetched))
        lines.append(
            f"  fetches    {' and '.join(what for what, _ in fetched)}; {takes} on disk, kept for the next time"
        )
        lines.append(f"  keeps it   in {look.state}")
    lines.append(f"  listens    on {look.address}")
    ends = f"`{us} down`" if look.detached else "Ctrl-C"
    download = "the download and about half a minute" if fetched else "10 to 40 s"
    lines.append(f"  takes      {download}; {ends} stops it, `{us} down --purge` removes everything again")
    if nearby:
        more = f" and {len(nearby) - MOST_SHOWN} more" if len(nearby) > MOST_SHOWN else ""
        shown = ", ".join(f"./{name}" for name in nearby[:MOST_SHOWN])
        lines.append(f"  also here  {shown}{more}: `{us} up ./{nearby[0]}` serves it instead")
    return lines


def took_file(choice: Choice, count: int, command: str) -> str:
    """Said where a file of the folder was taken."""
    deployments = f"{count} deployment{'s' if count != 1 else ''}"
    return f"taking ./{choice.what}: {deployments} (the packaged model instead: `{command} up {PACKAGED.name}`)"
