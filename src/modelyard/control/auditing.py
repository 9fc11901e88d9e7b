"""Whatever the admin API is asked to change stands in the audit log: every such route, also those that are yet to come.

A route need not think of it. What it knows beyond its path it may `tell`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from fastapi import Request, Response

from modelyard.control.audit_log import AuditLog
from modelyard.errors import ModelyardError

_READING = ("GET", "HEAD", "OPTIONS")
_VERBS = {"POST": "create", "PUT": "replace", "PATCH": "change", "DELETE": "remove"}
# Who the command line says is typing: one key opens the API, so this is a claim and shown as one.
USER_HEADER = "x-modelyard-user"
_USER = re.compile(r"[A-Za-z0-9._@-]{1,64}")

CallNext = Callable[[Request], Awaitable[Response]]


async def audited(audit: AuditLog, request: Request, call_next: CallNext) -> Response:
    """Answer, and note what was done and what came of it. Who showed no valid key has changed nothing.

    Raises ModelyardError where it was done and could not be noted."""
    if request.method in _READING:
        return await call_next(request)
    response = await call_next(request)
    if response.status_code == 401 or getattr(request.state, "noted", False):
        return response
    action, subject = _what(request)
    told = dict[str, str](getattr(request.state, "told", {}))
    subject = told.pop("subject", subject)
    try:
        audit.note(_who(request), action, subject, status=str(response.status_code), **told)
    except ModelyardError as error:
        raise ModelyardError(f"{action} of {subject} was answered, but {error.message}", hint=error.hint) from error
    return response


def tell(request: Request, **details: str) -> None:
    """Add to the entry of this request; `subject` takes the place of what its path says. Never a secret."""
    request.state.told = {**getattr(request.state, "told", {}), **details}


def noted(request: Request) -> str:
    """For what writes an entry of its own: who asks, and no other entry."""
    request.state.noted = True
    return _who(request)


def _what(request: Request) -> tuple[str, str]:
    """`deployments.restart` of `small`, `keys.remove` of `0123456789ab`."""
    kind, _, rest = request.url.path.strip("/").partition("/")
    subject, _, verb = rest.partition("/")
    done = verb if verb and request.method == "POST" else ".".join(filter(None, (verb, _VERBS[request.method])))
    return f"{kind}.{done}", subject


def _who(request: Request) -> str:
    user = request.headers.get(USER_HEADER, "")
    return f"admin ({user})" if _USER.fullmatch(user) else "admin"
