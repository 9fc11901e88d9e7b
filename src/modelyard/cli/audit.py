"""`modelyard audit`: is the audit log whole?"""

from __future__ import annotations

from modelyard.cli.admin import state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.errors import CheckFailed
from modelyard.observe.audit import verify_chain


def audit(json: Json = False) -> None:
    """Check the audit log: each entry bears the hash of the one before it. Exit code 7 where the chain is broken.

    Entries cut off at the end leave a chain that is whole: keep the last hash elsewhere and compare."""
    found = verify_chain(state_directory().audit)
    if json:
        print_json(found)
    elif found.broken_at is None:
        say(f"{found.entries} entries, each in its place; the last hash is {found.last_sha256 or '-'}")
    if found.broken_at is not None:
        raise CheckFailed(
            f"line {found.broken_at} of the audit log is not what was written: {found.reason}",
            hint="keep the file for whoever investigates; compare it with a backup",
        )
