"""Who named nothing to serve is told what that means before it happens."""

from __future__ import annotations

import platform

from modelyard.cli.choosing import PACKAGED, Choice, Outlook, outlook, took_file
from modelyard.cli.output import OUT, say, tilde
from modelyard.cli.prepare import known_before_the_model
from modelyard.clock import SYSTEM
from modelyard.engines.contract import Engine
from modelyard.engines.hosting import requirements_here
from modelyard.hardware.machine import probe
from modelyard.models.store import Store
from modelyard.node.environments import list_environments
from modelyard.settings import Settings
from modelyard.spec.deployment import DeploymentFile, Gateway
from modelyard.state import StateDirectory


def announce(
    choice: Choice, file: DeploymentFile, state: StateDirectory, settings: Settings, *, serving: bool, detached: bool
) -> None:
    """`serving`: a yard runs already, and `file` is added to it. Where nobody reads, only what was not expected."""
    if choice.named:
        return
    if choice.is_file:
        say(took_file(choice, len(file.deployments), settings.command))
    elif not serving and OUT.is_terminal and (chosen := known_before_the_model(file.deployments[0])) is not None:
        look = _look(chosen, file.gateway, state, settings, detached=detached)
        say("\n".join(outlook(look, choice.nearby)) + "\n")


def _look(chosen: Engine, gateway: Gateway, state: StateDirectory, settings: Settings, *, detached: bool) -> Outlook:
    only_here = ", for this machine only" if gateway.host == "127.0.0.1" else ""
    return Outlook(
        command=settings.command,
        state=tilde(str(state.root)),
        address=f"{'http' if gateway.tls is None else 'https'}://{gateway.host}:{gateway.port}/v1{only_here}",
        engine=chosen.name,
        requirements=requirements_here(chosen, probe(), platform.python_version(), asked=settings.build),
        entry=PACKAGED,
        here={one.name for one in Store(state, SYSTEM).stored()} | {one.engine for one in list_environments(state)},
        detached=detached,
    )
