"""The hub's protocol: what a revision of a repository holds, where its files are, and what its refusals mean.

Endpoints and headers as huggingface_hub uses them: `/api/models/REPO/revision/REV?blobs=true` gives the commit and
every file with size and hash; `/REPO/resolve/COMMIT/PATH` gives a file (or a redirect to it), with X-Repo-Commit,
X-Linked-Size and X-Linked-Etag on the first answer; X-Error-Code says which refusal is meant. The hash of a large file
is its SHA-256, of a small one git's SHA-1 of the blob."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from modelyard.errors import FetchFailed, ModelRefused
from modelyard.models.card import UNKNOWN, printable
from modelyard.models.download import Expected
from modelyard.models.json_files import JsonObject, is_array, is_object, parse_json_object
from modelyard.models.references import HubReference
from modelyard.models.web import Answer, Web, raise_if_passing
from modelyard.settings import Hub

MAX_FILES = 50_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository. `path` is relative, printable and stays inside."""

    path: str
    expected: Expected

    @property
    def size_bytes(self) -> int:
        return self.expected.size_bytes or 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a repository held at `commit`."""

    commit: str
    licence: str
    files: tuple[HubFile, ...]


class HubApi:
    """Asks one hub about one repository."""

    def __init__(self, web: Web, hub: Hub, reference: HubReference) -> None:
        self._web, self._hub, self._reference = web, hub, reference
        self.token = read_token(hub)

    async def snapshot(self) -> Snapshot:
        """Which commit the revision means now, and its files. Raises FetchFailed with what to do."""
        repository, revision = self._reference.repository, quote(self._reference.revision, safe="")
        url = f"{self._hub.endpoint}/api/models/{repository}/revision/{revision}?blobs=true"
        answer, body = await self._web.json(url, token=self.token)
        if answer.status != 200:
            raise self.refusal(answer)
        try:
            found = parse_json_object(body, f"the answer of {answer.origin}")
        except ModelRefused as error:
            raise FetchFailed(error.message, hint="this is no hub: check HF_ENDPOINT and the proxy") from error
        files = await self._files(found)
        return Snapshot(_commit(found, answer.origin), _licence(found), files)

    def url_of(self, file: HubFile, commit: str) -> str:
        return f"{self._hub.endpoint}/{self._reference.repository}/resolve/{commit}/{quote(file.path)}"

    async def _files(self, found: JsonObject) -> tuple[HubFile, ...]:
        siblings = found.get("siblings")
        if not is_array(siblings) or len(siblings) > MAX_FILES:
            raise FetchFailed(
                f"{self._hub.endpoint} does not say which files {self._reference} has",
                hint="this is no hub: check HF_ENDPOINT",
            )
        commit = _commit(found, self._hub.endpoint)
        files: list[HubFile] = []
        for sibling in siblings:
            if is_object(sibling) and (path := _safe_path(sibling.get("rfilename"))):
                file = HubFile(path, _expected(sibling))
                files.append(file if file.expected.hash_name else HubFile(path, await self._ask(file, commit)))
        return tuple(files)

    async def _ask(self, file: HubFile, commit: str) -> Expected:
        """For mirrors that list names alone. Files that we never fetch are not asked about."""
        if not _may_matter(file.path):
            return file.expected
        url = self.url_of(file, commit)
        async with self._web.ask(url, method="HEAD", token=self.token) as answer:
            raise_if_passing(answer)
            if answer.status != 200:
                raise self.refusal(answer)
            headers = answer.headers
            etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
            size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
            return _by_hash(etag.removeprefix("W/").strip('"'), int(size) if size.isdecimal() else None)

    def refusal(self, answer: Answer) -> FetchFailed:
        """What a status other than success means for whoever asked."""
        reference, endpoint = self._reference, self._hub.endpoint
        page = f"{endpoint}/{reference.repository}"
        code, status = answer.headers.get("X-Error-Code", ""), answer.status
        if not f"{endpoint}/".startswith(f"{answer.origin}/"):
            return FetchFailed(
                f"{answer.origin}, where {endpoint} keeps this file, refuses it with status {status}",
                hint="links to it are signed for a short time: check this machine's clock, and the proxy's rules",
            )
        set_token = (
            f"set HF_TOKEN to a token of an account that may read it ({endpoint}/settings/tokens makes one), "
            f"or write the token into {self._hub.token_files[0] if self._hub.token_files else 'a token file'}"
        )
        if code == "GatedRepo" or (status == 403 and not code):
            return FetchFailed(
                f"{reference} is gated: its authors want their terms accepted first (status {status})",
                hint=f"open {page} with your account, accept the terms, wait until access is granted; then {set_token}"
                if not self.token
                else f"open {page} with the account of your token and accept the terms; "
                "the token itself must be allowed to read gated repositories",
            )
        if code == "RevisionNotFound":
            return FetchFailed(
                f"{reference.repository} has no revision {reference.revision!r}",
                hint=f"the branches, tags and commits that exist: {page}/tree/main",
            )
        if code == "EntryNotFound":
            return FetchFailed(f"{reference} lists a file that it does not have", hint="try again, or another mirror")
        if status == 401 and self.token and code != "RepoNotFound":
            return FetchFailed(
                f"{answer.origin} does not accept the token that is set",
                hint=f"it may be mistyped, expired or revoked: {endpoint}/settings/tokens shows yours",
            )
        if status in (401, 404):
            return FetchFailed(
                f"{answer.origin} knows no model {reference.repository}, or it is private",
                hint="check the spelling (capital letters count)"
                + ("; is it private? the account of your token must be allowed to read it" if self.token else "")
                + ("" if self.token else f"; is it private? {set_token}"),
            )
        said = printable(answer.headers.get("X-Error-Message", ""))
        return FetchFailed(
            f"{answer.origin} refuses {reference} with status {status}" + (f": {said}" if said else ""),
            hint=f"look at {page} in a browser, or try another mirror (HF_ENDPOINT)",
        )


def read_token(hub: Hub) -> str:
    """The token itself, from where the settings say that it lies; empty where there is none."""
    if hub.token:
        return hub.token
    for path in hub.token_files:
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def _expected(sibling: JsonObject) -> Expected:
    """`lfs` is there for large files; `blobId` is then the hash of git's small pointer to them, and means nothing."""
    lfs, size = sibling.get("lfs"), sibling.get("size")
    size_bytes = size if isinstance(size, int) and size >= 0 else None
    if is_object(lfs):
        return _by_hash(str(lfs.get("sha256", lfs.get("oid", ""))).removeprefix("sha256:"), size_bytes)
    return _by_hash(str(sibling.get("blobId", "")), size_bytes)


def _by_hash(text: str, size_bytes: int | None) -> Expected:
    if _SHA256.fullmatch(text):
        return Expected(size_bytes, sha256=text)
    return Expected(size_bytes, git_sha1=text if _COMMIT.fullmatch(text) else "")


def _safe_path(value: object) -> str:
    """Empty for a name that would leave the folder, or cannot be shown."""
    if not isinstance(value, str) or not value or not value.isprintable() or "\\" in value or len(value) > 500:
        return ""
    path = PurePosixPath(value)
    parts = value.split("/")
    return "" if path.is_absolute() or any(part in ("", ".", "..") for part in parts) else value


def _may_matter(path: str) -> bool:
    return path.endswith((".gguf", ".safetensors")) or "/" not in path


def _commit(found: JsonObject, origin: str) -> str:
    commit = found.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise FetchFailed(f"{origin} does not say which commit it serves", hint="this is no hub: check HF_ENDPOINT")
    return commit


def _licence(found: JsonObject) -> str:
    card = found.get("cardData")
    value = card.get("license") if is_object(card) else None
    return printable(value) if isinstance(value, str) and value else UNKNOWN
