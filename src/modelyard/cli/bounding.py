"""What keys and teams may do: the options that bound them, and how their bounds are shown."""

from __future__ import annotations

from typing import Annotated

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
BudgetPerDay = Annotated[str | None, typer.Option(help="Most money in a day (UTC): 5.00, in the prices' currency.")]
BudgetPerMonth = Annotated[str | None, typer.Option(help="Most money in a month (UTC).")]
BudgetTokensPerDay = Annotated[int | None, typer.Option(min=1, help="Most tokens in a day (UTC).")]
BudgetTokensPerMonth = Annotated[int | None, typer.Option(min=1, help="Most tokens in a month (UTC).")]


def bounds_of(
    deployment: list[str] | None,
    endpoint: list[str] | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent_requests: int | None,
    budget_per_day: str | None,
    budget_per_month: str | None,
    budget_tokens_per_day: int | None,
    budget_tokens_per_month: int | None,
) -> dict[str, object]:
    """As the admin API takes them."""
    return {
        "deployments": deployment,
        "endpoints": endpoint,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "budget_per_day": budget_per_day,
        "budget_per_month": budget_per_month,
        "tokens_per_day": budget_tokens_per_day,
        "tokens_per_month": budget_tokens_per_month,
    }


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
        _money(budgets.pico_per_day, "a day"),
        _money(budgets.pico_per_month, "a month"),
        _said(budgets.tokens_per_day, "tokens a day"),
        _said(budgets.tokens_per_month, "tokens a month"),
    ]
    return ", ".join(text for text in said if text) or "-"


def _said(most: int | None, what: str) -> str:
    return "" if most is None else f"{most:,} {what}"


def _money(pico: int | None, what: str) -> str:
    return "" if pico is None else f"{show_pico(pico)} {what}"
