"""What keys and teams may do: the options that bound them, and how their bounds are shown."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from modelyard.control.key_log import ListedKey
from modelyard.records.money import show_pico

Deployments = Annotated[list[str] | None, typer.Option("--deployment", help="Only for this deployment. Repeatable.")]
Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", help="Only this endpoint: /v1/chat/completions. Repeatable.")
]
RequestsPerMinute = Annotated[int | None, typer.Option(min=1, help="Most requests in any minute.")]
TokensPerMinute = Annotated[int | None, typer.Option(min=1, help="Most tokens of prompts and answers in any minute.")]
ConcurrentRequests = Annotated[int | None, typer.Option(min=1, help="Most requests at once, those that wait included.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer that one request may ask for.")]
BudgetPerDay = Annotated[str | None, typer.Option(help="Most money in a day (UTC): 5.00, in the prices' currency.")]
BudgetPerMonth = Annotated[str | None, typer.Option(help="Most money in a month (UTC).")]
TokensPerDay = Annotated[int | None, typer.Option("--budget-tokens-per-day", min=1, help="Most tokens in a day (UTC).")]
TokensPerMonth = Annotated[
    int | None, typer.Option("--budget-tokens-per-month", min=1, help="Most tokens in a month (UTC).")
]
Priority = Annotated[
    int | None, typer.Option(min=-100, max=100, help="Where requests wait, a higher one goes first; 0 if nobody says.")
]
Weight = Annotated[
    float | None, typer.Option(min=0.01, max=100, help="Its part of the seats beside others with 1; not below a team.")
]
# By their names in the admin API.
OPTIONS: dict[str, Any] = {
    "deployments": Deployments,
    "endpoints": Endpoints,
    "requests_per_minute": RequestsPerMinute,
    "tokens_per_minute": TokensPerMinute,
    "concurrent_requests": ConcurrentRequests,
    "max_tokens": MaxTokens,
    "budget_per_day": BudgetPerDay,
    "budget_per_month": BudgetPerMonth,
    "tokens_per_day": TokensPerDay,
    "tokens_per_month": TokensPerMonth,
    "priority": Priority,
    "weight": Weight,
}


class Removable(StrEnum):
    """The options whose bound can be taken away."""

    days = "days"
    deployment = "deployment"
    endpoint = "endpoint"
    requests_per_minute = "requests-per-minute"
    tokens_per_minute = "tokens-per-minute"
    concurrent_requests = "concurrent-requests"
    max_tokens = "max-tokens"
    budget_per_day = "budget-per-day"
    budget_per_month = "budget-per-month"
    budget_tokens_per_day = "budget-tokens-per-day"
    budget_tokens_per_month = "budget-tokens-per-month"
    priority = "priority"
    weight = "weight"

    @property
    def field(self) -> str:
        """Its name in the admin API."""
        return _OTHER_FIELDS.get(self.value, self.name)


_OTHER_FIELDS = {
    "days": "expires_at",
    "deployment": "deployments",
    "endpoint": "endpoints",
    "budget-tokens-per-day": "tokens_per_day",
    "budget-tokens-per-month": "tokens_per_month",
}


def bounded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with every option above in place of its parameter `bounds`, a dictionary of those that were given, as
    the admin API takes them."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "bounds":
            parameters += [_option(name, kind) for name, kind in OPTIONS.items()]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_options(**given: object) -> None:
        bounds = {name: value for name in OPTIONS if (value := given.pop(name)) is not None}
        command(**given, bounds=bounds)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_options


def _option(name: str, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def scopes_text(key: ListedKey) -> str:
    reaches = [*(key.scopes.deployments or ()), *(key.scopes.endpoints or ())]
    return ", ".join(reaches) or "everything"


def bounds_text(key: ListedKey) -> str:
    """`60 requests/min, 5.00 a day`; `-` where nothing bounds it."""
    limits, budgets = key.limits, key.budgets
    said = [
        _said(limits.requests_per_minute, "requests/min"),
        _said(limits.tokens_per_minute, "tokens/min"),
        _said(limits.concurrent_requests, "at once"),
        _said(limits.max_tokens, "tokens an answer"),
        _money(budgets.pico_per_day, "a day"),
        _money(budgets.pico_per_month, "a month"),
        _said(budgets.tokens_per_day, "tokens a day"),
        _said(budgets.tokens_per_month, "tokens a month"),
        "" if key.priority is None else f"priority {key.priority}",
        "" if key.weight == 1 else f"weight {key.weight:g}",
    ]
    return ", ".join(text for text in said if text) or "-"


def _said(most: int | None, what: str) -> str:
    return "" if most is None else f"{most:,} {what}"


def _money(pico: int | None, what: str) -> str:
    return "" if pico is None else f"{show_pico(pico)} {what}"
