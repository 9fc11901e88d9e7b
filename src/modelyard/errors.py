"""The one tree of errors: what happened, in `hint` what to try next, in the class the exit code."""

from __future__ import annotations

from typing import ClassVar


class ModelyardError(Exception):
    """Something that Modelyard refuses or cannot do. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ModelyardError):
    """The command or its arguments make no sense as given."""

    exit_code = 2


class SpecError(UsageError):
    """A deployment file is not what it should be; `where` is `file:line: key`."""

    def __init__(self, message: str, *, where: str, hint: str = "") -> None:
        super().__init__(f"{where}: {message}", hint=hint)
        self.where = where


class EnvironmentFailed(ModelyardError):
    """An isolated environment could not be made: index out of reach, disk full, no such version."""

    exit_code = 3


class ModelRefused(ModelyardError):
    """The file gate or the card said no: the model is not served, and why."""

    exit_code = 4


class FetchFailed(ModelyardError):
    """A model could not be fetched or did not match its hash; nothing half-trusted was left."""

    exit_code = 4


class CannotPlan(ModelyardError):
    """No engine can serve this artifact on this machine; the message names the number that does not fit."""

    exit_code = 5


class EngineFailed(ModelyardError):
    """An engine ended or never became ready; the message is the cause, not the symptom."""

    exit_code = 6


class CheckFailed(ModelyardError):
    """Verification was red: the route stays closed."""

    exit_code = 7


class AddressInUse(ModelyardError):
    """The port is taken, or the bind is refused by the rules for listening beyond loopback."""

    exit_code = 8


class StateLocked(ModelyardError):
    """Another process of ours holds the state directory."""

    exit_code = 9


class NotRunning(ModelyardError):
    """No yard runs on this state directory, or it does not answer."""

    exit_code = 9
