"""The `modelyard` command whose conformance kit tries a FakeEngine; its knobs come from MODELYARD_TEST_KNOBS (JSON)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conformance_fakes import PACE, a_subject
from modelyard import cli
from modelyard.cli import conformance
from modelyard.verify.conformance import kit, row
from modelyard.verify.conformance.subject import Subject


def subject(*_: object) -> Subject:
    return a_subject(**json.loads(os.environ.get("MODELYARD_TEST_KNOBS", "{}")))


conformance._subject = subject
kit.Pace = row.Pace = lambda: PACE  # type: ignore[assignment, misc]
cli.main()
