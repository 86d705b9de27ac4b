"""RunContext: what a handler may know of its own run, and how it gets it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import job_scheduler
from job_scheduler import RunContext
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)

if TYPE_CHECKING:
    from decimal import Unknowable  # type: ignore[attr-defined]  # for type checkers alone, say

    from job_scheduler.core.handlers.registry import HandlerRegistry


def told(context: RunContext) -> dict[str, Any]:
    """Tell what the context says."""
    return {
        "task_id": context.task_id,
        "attempt": context.attempt,
        "token": context.token,
        "should_stop": context.should_stop,
    }


def plainly(*, number: int = 0, context: RunContext) -> dict[str, Any]:
    """Tell what the context says."""
    return told(context) | {"number": number}


async def asynchronously(context: job_scheduler.RunContext, number: int = 0) -> dict[str, Any]:
    """Tell what the context says."""
    return told(context) | {"number": number}


def unreadably(run: RunContext, number: Unknowable = 0) -> dict[str, Any]:
    """Tell what the context says, under an annotation that only a type checker can read."""
    return told(run) | {"number": number}


class Telling:
    """Something that is called like a function."""

    def __call__(self, context: RunContext, number: int) -> dict[str, Any]:
        """Tell what the context says."""
        return told(context) | {"number": number}


@pytest.mark.parametrize(
    "function", [plainly, asynchronously, unreadably, Telling(), partial(plainly)]
)
def test_parameter_with_the_annotation_gets_the_context(
    store: Backend, registry: HandlerRegistry, function: Callable[..., Any]
) -> None:
    registry.task("probe")(function)
    with running(store, registry) as client:
        task_id = post(client, run_at=later(0), payload={"number": 5})["task_id"]
        result = finished(client, task_id)["result"]
    token = result.pop("token")
    assert result == {"task_id": task_id, "attempt": 1, "should_stop": False, "number": 5}
    [row] = store.sql("SELECT claim_token FROM task_runs")
    assert str(row["claim_token"]) == token


@pytest.mark.parametrize("function", [int, lambda context: str(context)])
def test_parameter_without_the_annotation_is_the_payloads(
    registry: HandlerRegistry, function: Callable[..., Any]
) -> None:
    registry.task("probe")(function)
    handler = registry.get("probe")
    assert handler is not None
    assert handler.context is None


def test_payload_cannot_take_the_contexts_place(store: Backend, registry: HandlerRegistry) -> None:
    registry.task("plain")(plainly)
    registry.task("async")(asynchronously)
    with running(store, registry) as client:
        for name in ("plain", "async"):
            body = task_body(name=name, payload={"context": "mine"})
            problem = assert_problem(client.post("/tasks", json=body), 422, "PAYLOAD_422")
            assert problem["errors"][0]["field"] == "payload.context"


@pytest.mark.parametrize("lane", ["plain", "async"])
def test_handler_is_asked_to_stop_when_the_service_is(
    store: Backend, registry: HandlerRegistry, lane: str
) -> None:
    begun = threading.Event()

    @registry.task("plain")
    def plain(context: RunContext) -> str:
        begun.set()
        while not context.should_stop:
            threading.Event().wait(0.01)
        return "as asked"

    @registry.task("async")
    async def on_the_loop(context: RunContext) -> str:
        begun.set()
        while not context.should_stop:  # noqa: ASYNC110 (a handler can but ask)
            await asyncio.sleep(0.01)
        return "as asked"

    with running(store, registry, shutdown_grace=30) as client:
        task_id = post(client, name=lane, run_at=later(0))["task_id"]
        assert begun.wait(10)
        client.portal.call(services_of(client).shutdown.note_signal)  # type: ignore[union-attr]
    row = store.row(task_id)
    assert (row["status"], row["result"]) == ("done", "as asked")
