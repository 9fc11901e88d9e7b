"""References to models that lie elsewhere, as people type them: parsed strictly, nothing is looked up here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from modelyard.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# The hub's rules for names: letters, digits, -, _ and ., neither `--` nor `..`, at most 96 characters.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,199}", re.ASCII)
_CHOICE = re.compile(r"[A-Za-z0-9][\w./+ -]{0,249}", re.ASCII)
_OLLAMA = re.compile(
    r"(?:(?P<namespace>[A-Za-z0-9][\w.-]{0,79})/)?(?P<model>[A-Za-z0-9][\w.-]{0,79})(?::(?P<tag>[A-Za-z0-9_][\w.-]{0,79}))?",
    re.ASCII,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubReference:
    """`hf://org/name[@revision][:quant]`. `choice` is a quantisation such as Q4_K_M, or the path of a .gguf file."""

    repository: str
    revision: str = "main"
    choice: str = ""

    @property
    def title(self) -> str:
        return self.repository.rpartition("/")[2]

    def at(self, revision: str) -> HubReference:
        return HubReference(self.repository, revision, self.choice)

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repository}{revision}" + (f":{self.choice}" if self.choice else "")


@dataclass(frozen=True, slots=True)
class OllamaReference:
    """`ollama://[namespace/]model[:tag]`."""

    model: str
    tag: str = "latest"
    namespace: str = "library"

    def __str__(self) -> str:
        namespace = "" if self.namespace == "library" else f"{self.namespace}/"
        return f"ollama://{namespace}{self.model}:{self.tag}"


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """A .gguf file under a URL, with the hash that it must have where the reference says it (`?sha256=`).

    The rest of a query often signs a request: it is used and neither shown nor recorded."""

    url: str
    sha256: str = ""

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]

    def pinned(self, sha256: str) -> ObjectReference:
        return ObjectReference(self.url, sha256)

    def __str__(self) -> str:
        shown = urlsplit(self.url)._replace(query="").geturl()
        return f"{shown}?sha256={self.sha256}" if self.sha256 else shown


def scheme_of(reference: str) -> str:
    """`hf` of `hf://org/name`, in lower case; empty where `reference` is no URL."""
    found = _SCHEME.match(reference)
    return found[1].lower() if found else ""


def parse_hub(reference: str) -> HubReference:
    """Raises UsageError with what is expected."""
    rest = reference.partition("://")[2]
    rest, _, choice = rest.partition(":")
    repository, at, revision = rest.partition("@")
    if "/" not in repository and _REPOSITORY.fullmatch(f"org/{repository}"):
        raise _not_a_hub_reference(reference, f"it has no organisation; is it org/{repository}?")
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise _not_a_hub_reference(reference, f"{repository!r} is no repository")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise _not_a_hub_reference(reference, f"{revision!r} is no revision")
    if ":" in rest or (choice and not _CHOICE.fullmatch(choice)) or ".." in choice or reference.endswith(":"):
        raise _not_a_hub_reference(reference, f"{choice!r} is no quantisation and no file")
    return HubReference(repository, revision or "main", choice)


def _not_a_hub_reference(reference: str, why: str) -> UsageError:
    return UsageError(
        f"{reference!r} names no model of a hub: {why}",
        hint="write hf://org/name, with @revision and :quantisation where you want them: "
        "hf://Qwen/Qwen3-0.6B-GGUF:Q8_0",
    )


def parse_ollama(reference: str) -> OllamaReference:
    """Raises UsageError with what is expected."""
    found = _OLLAMA.fullmatch(reference.partition("://")[2])
    if not found or ".." in reference:
        raise UsageError(
            f"{reference!r} names no model of an Ollama store",
            hint="write ollama://name or ollama://name:tag, as `ollama list` shows it",
        )
    return OllamaReference(found["model"], found["tag"] or "latest", found["namespace"] or "library")


def parse_object(reference: str) -> ObjectReference:
    """Raises UsageError where it is not a .gguf file, or its hash is none."""
    parts = urlsplit(reference)
    hashes = parse_qs(parts.query).get("sha256", [])
    query = "&".join(pair for pair in parts.query.split("&") if pair and not pair.startswith("sha256="))
    if len(hashes) > 1 or (hashes and not _SHA256.fullmatch(hashes[0].lower())):
        raise UsageError(f"{reference!r}: sha256 is no hash", hint="give one hash of 64 hexadecimal digits")
    if parts.username or parts.password:
        raise UsageError(
            f"the URL of {parts.hostname} holds a password, which would stand in records and logs",
            hint="keep credentials where the object store's own client looks for them (environment, profile, netrc)",
        )
    found = ObjectReference(parts._replace(query=query, fragment="").geturl(), hashes[0].lower() if hashes else "")
    if not found.file_name.lower().endswith(".gguf"):
        raise UsageError(
            f"{reference!r} is no model file: only single .gguf files are fetched from object stores",
            hint="name the .gguf file; a folder of safetensors is fetched from a hub (hf://org/name)",
        )
    return found
