"""The `modelyard` command with FakeEngines in place of the four steps that prepare a real one.

The knobs come from MODELYARD_TEST_KNOBS (JSON); everything from the yard on is the real thing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from msgspec.structs import replace

from modelyard import cli
from modelyard.cli import up
from modelyard.cli.seven_steps import STEPS, SevenSteps
from modelyard.control.wanted import Wanted
from modelyard.spec.deployment import Deployment
from modelyard.spec.policy import policy_of
from yards import fake_wanted


def prepare(deployment: Deployment, state: object, settings: object, steps: SevenSteps) -> Wanted:
    for name in STEPS[:4]:
        with steps.step(name) as step:
            step.result = "made up"
    wanted = fake_wanted(deployment.name, **json.loads(os.environ.get("MODELYARD_TEST_KNOBS", "{}")))
    return replace(wanted, policy=replace(wanted.policy, prices=policy_of(deployment).prices))


up.prepare = prepare
cli.main()
