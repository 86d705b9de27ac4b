"""What a client can ask of many tasks at a time."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Unpack

from job_scheduler.client.answers import part_of, tasks_of
from job_scheduler.client.asking import Asking
from job_scheduler.client.errors import ApiError, ServiceUnavailable, with_words
from job_scheduler.client.exchange import Ask, Steps
from job_scheduler.client.lines import Lines, Source
from job_scheduler.client.members import (
    NewTask,
    TaskChange,
    TaskMatch,
    as_json,
    as_query,
    key_header,
)
from job_scheduler.client.reports import ImportReport, Outcome, outcomes_of, report_of
from job_scheduler.client.running import operation
from job_scheduler.client.shapes import Task
from job_scheduler.identifiers import new_token


class OperationsOnMany(Asking):
    """The operations of a client on many tasks."""

    @operation
    def create_many(
        self, tasks: Iterable[NewTask], *, idempotency_key: str | None = None
    ) -> Steps[list[Task]]:
        """Schedule up to 10,000 tasks, all or none; return them in the same order.

        Each is a dict of the members of ``POST /tasks``. As with `create`, a key is made where none
        is given, unless a task has a `task_id` of yours: then each must have one to be repeated.
        """
        return (yield from self._ask(_batch(tasks, idempotency_key), tasks_of))

    @operation
    def create_each(
        self, tasks: Iterable[NewTask], *, idempotency_key: str | None = None
    ) -> Steps[list[Outcome]]:
        """Schedule those of up to 10,000 tasks that can be; tell of each, in the same order.

        It is repeated as `create_many` is: what a repetition finds made is told of as made.
        """
        ask = replace(_batch(tasks, idempotency_key), query=[("partial", "true")])
        return (yield from self._ask(ask, outcomes_of))

    @operation
    def delete_many(self, *, dry_run: bool = False, **filters: Unpack[TaskMatch]) -> Steps[int]:
        """Remove the tasks that meet all filters and have not started; return how many it was.

        With `dry_run` nothing is removed: how many would be is returned. At least one filter is
        needed. 1,000 at a time are removed, all of them or none. Where it fails in the middle, the
        error tells how many are gone for certain. A request without an answer is not repeated,
        for what it has removed would not be counted; to do it again removes what is left.
        """
        ask = Ask("DELETE", "/tasks", _query(filters, dry_run=dry_run), repeatable=dry_run)
        return (yield from self._part_by_part(ask, "removed"))

    @operation
    def change_many(
        self, changes: TaskChange, *, dry_run: bool = False, **filters: Unpack[TaskMatch]
    ) -> Steps[int]:
        """Change the tasks that meet all filters and have not started; return how many it was.

        `changes` is a dict of what is to be another: None takes away. With `dry_run` nothing is
        changed: how many would be is returned, if each can take it. At least one filter is needed.
        1,000 at a time are changed, all of them or none. Where it fails in the middle, the error
        tells how many are changed for certain. A request without an answer is not repeated, for
        what it has changed would not be counted; to do it again changes what is left.
        """
        query = _query(filters, dry_run=dry_run)
        ask = Ask("PATCH", "/tasks", query, as_json(changes), repeatable=dry_run)
        return (yield from self._part_by_part(ask, "changed"))

    @operation
    def import_tasks(
        self, tasks: Source, *, dry_run: bool = False, idempotency_key: str | None = None
    ) -> Steps[ImportReport]:
        """Store those of any number of tasks that can be; return how many it was, and why not.

        `tasks` are dicts of the members of ``POST /tasks``, tasks that were exported (those that
        have begun are skipped), lines of JSON, or an open file of lines; with AsyncClient, they
        may come from an async iterable. They are sent as they are made, in pieces of 64 KiB. With
        `dry_run` they are looked at, and nothing is stored.

        What is stored stays when the import breaks off. To repeat it harms nothing where all have
        a `task_id`, or with the same tasks under the same `idempotency_key`: what is there already
        is counted as `present`. A key is made where none is given, and told by the error. What
        comes from a container, or a file that can be wound back, is repeated by itself, but not
        what comes from an iterator that has begun.
        """
        key = idempotency_key or new_token()
        query = [("dry_run", "true")] if dry_run else []
        ask = Ask("POST", "/tasks/import", query, Lines(tasks), key_header(key))
        try:
            return (yield from self._ask(ask, report_of))
        except ServiceUnavailable as error:
            words = f"Repeated with idempotency_key={key!r}, the import stores nothing twice."
            raise with_words(error, words) from error

    def _part_by_part(self, ask: Ask, done: str) -> Steps[int]:
        """Ask until all parts are done; return how many tasks it was."""
        number = 0
        part = ask
        while True:
            try:
                more, cursor = yield from self._ask(part, part_of)
            except ServiceUnavailable as error:
                words = f"{number} tasks were {done} for certain: do it again for what is left."
                raise with_words(error, words) from error
            except ApiError as error:
                raise with_words(error, f"Before that, {number} tasks were {done}.") from error
            number += more
            if cursor is None:
                return number
            part = replace(ask, query=[*ask.query, ("cursor", cursor)])


def _batch(tasks: Iterable[NewTask], key: str | None) -> Ask:
    bodies = list(tasks)
    named = ["task_id" in each for each in bodies]
    if key is None and not any(named):
        key = new_token()
    return Ask(
        "POST",
        "/tasks/batch",
        body=as_json({"tasks": bodies}),
        headers=key_header(key),
        repeatable=key is not None or all(named),
    )


def _query(filters: TaskMatch, *, dry_run: bool) -> list[tuple[str, str]]:
    return as_query(filters) + ([("dry_run", "true")] if dry_run else [])
