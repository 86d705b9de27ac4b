"""What the service reports of many tasks: of each, what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from job_scheduler.client.errors import ApiError, error_in
from job_scheduler.client.shapes import Shape, Task, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Shape):
    """What became of one task among many: there is a `task`, or a `problem` that says why not.

    `status` is that of HTTP which ``POST /tasks`` would have answered. The `problem` is an error as
    it would have been raised.
    """

    status: int
    task: Task | None = None
    problem: ApiError | None = None

    @property
    def made(self) -> bool:
        """Whether the task is this one: with 200 it is another one, which has its `unique_key`."""
        return self.status == HTTPStatus.CREATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Shape):
    """Why a line of an import was not taken; lines are counted from 1 on."""

    line: int
    problem: ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport(Shape):
    """How many lines an import had, and what became of them.

    `present` are tasks that were there already, made by the same import before, say. `skipped` are
    exported tasks that have begun. `problems` tells of the first 100 that were `refused`.
    """

    lines: int
    created: int
    present: int
    skipped: int
    refused: int
    problems: Sequence[Refusal]
    dry_run: bool


def outcomes_of(answer: httpx.Response) -> list[Outcome]:
    """Return what became of each task.

    Raises:
        TypeError, ValueError, KeyError: something else was answered.
    """
    return [_outcome(document) for document in answer.json()]


def report_of(answer: httpx.Response) -> ImportReport:
    """Return what an import came to.

    Raises:
        TypeError, ValueError, KeyError: something else was answered.
    """
    document = answer.json()
    problems = [
        read(Refusal, each, problem=error_in(each["problem"], each["problem"]["status"]))
        for each in document["problems"]
    ]
    return read(ImportReport, document, problems=problems)


def _outcome(document: Mapping[str, Any]) -> Outcome:
    if "task" in document:
        return read(Outcome, document, task=read(Task, document["task"]))
    return read(Outcome, document, problem=error_in(document["problem"], document["status"]))
