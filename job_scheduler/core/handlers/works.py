"""What a task runs: a handler by its name, a webhook, or a command; and the defaults of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from job_scheduler.constants import UnknownTasks
from job_scheduler.core import own_words
from job_scheduler.core.claims import Claim
from job_scheduler.core.fields import Command
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.options import Options
from job_scheduler.core.handlers.processes.commands import Commands
from job_scheduler.core.handlers.processes.pool import Workers
from job_scheduler.core.handlers.raised import Fail
from job_scheduler.core.handlers.registry import Handler, HandlerRegistry
from job_scheduler.core.handlers.webhook.guard import Guard
from job_scheduler.core.handlers.webhook.sending import (
    TIMEOUT_SECONDS,
    WebhookSender,
    stored_webhook,
)
from job_scheduler.core.limits import Bounds
from job_scheduler.core.outcomes import Outcome, Parked, Succeeded
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.store import COMMAND, HANDLER, DueTask
from job_scheduler.exceptions import (
    InvalidField,
    InvalidPayload,
    InvalidRequest,
    UnknownTaskName,
    in_words,
)

_WEBHOOK_OPTIONS = Options(timeout=TIMEOUT_SECONDS)
_COMMAND_OPTIONS = Options()
_COMMAND: TypeAdapter[list[str]] = TypeAdapter(Command)
_PARKED_SECONDS = (60.0, 600.0)
"""What a task waits whose handler is missing: half of what it is late, within these bounds."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one run calls: with its context, in a thread unless it `is_async`.

    `call` raises what the work raises; without an answer to it, `options` say what follows.
    """

    call: Callable[[RunContext], Any]
    is_async: bool
    options: Options


class Works:
    """All that tasks can run here."""

    def __init__(
        self,
        registry: HandlerRegistry,
        guard: Guard,
        webhooks: WebhookSender,
        commands: Commands,
        workers: Workers,
        unknown_tasks: UnknownTasks,
    ) -> None:
        self.registry = registry
        self.limits = registry.limits()
        self._guard = guard
        self._webhooks = webhooks
        self._commands = commands
        self._workers = workers
        self._unknown_tasks = unknown_tasks

    def refusal_of(self, wanted: TaskCreate) -> InvalidRequest | None:
        """Return why this task is not taken, if so.

        It asks for what is not allowed, its payload does not fit the handler, or there is none
        (with ``UNKNOWN_TASKS=reject``).
        """
        for name in ("webhook", "on_done", "on_failed"):
            if (hook := getattr(wanted, name)) and (words := self._guard.refusal(hook.url)):
                return InvalidField("body", f"{name}.url", words)
        if wanted.command is not None:
            words = self._commands.refusal(wanted.command)
            return InvalidField("body", "command", words) if words else None
        if wanted.webhook is not None:
            return None
        handler = self.registry.get(wanted.name)
        if handler is not None:
            faults = handler.arguments.faults(wanted.payload or {})
            return InvalidPayload(wanted.name, faults) if faults else None
        if self._unknown_tasks is not UnknownTasks.Reject:
            return None
        return UnknownTaskName(wanted.name, self.registry.names())

    def handler_of(self, wanted: TaskCreate) -> Handler | None:
        """Return the handler of a task, if that is what it asks for and there is one."""
        names_handler = wanted.webhook is None and wanted.command is None
        return self.registry.get(wanted.name) if names_handler else None

    def limits_on(self, claim: Claim) -> list[str]:
        """Return the names of the limits that a run was under."""
        is_handler = claim.webhook is None and claim.command is None
        bounds = Bounds(claim.name if is_handler else None, claim.concurrency_key)
        return bounds.names(self.limits)

    def is_limited(self, task: DueTask) -> bool:
        """Tell whether there may be a limit on how many such tasks run or start."""
        return task.is_limited or (task.kind == HANDLER and task.name in self.limits)

    def needs_thread(self, task: DueTask) -> bool:
        """Tell whether a task takes one of the threads for plain handlers."""
        handler = self._handler_of_due(task)
        return handler is not None and handler.takes_thread

    def needs_process(self, task: DueTask) -> bool:
        """Tell whether a task takes a process of its own."""
        handler = self._handler_of_due(task)
        is_isolated = handler is not None and handler.options.isolation is not None
        return is_isolated or task.kind == COMMAND

    def _handler_of_due(self, task: DueTask) -> Handler | None:
        return self.registry.get(task.name) if task.kind == HANDLER else None

    def of(self, claim: Claim) -> Work | Outcome:
        """Return what a claimed task runs; or what becomes of it, if there is nothing to run."""
        if claim.webhook is not None:
            return Work(partial(self._send, claim.webhook), True, _WEBHOOK_OPTIONS)
        if claim.command is not None:
            return Work(partial(self._run, claim.command), True, _COMMAND_OPTIONS)
        handler = self.registry.get(claim.name)
        if handler is None:
            return self._without_handler(claim)
        return Work(
            partial(self._handle, handler, claim.payload),
            not handler.takes_thread,
            handler.options,
        )

    async def _send(self, stored: Any, context: RunContext) -> Any:
        return await self._webhooks.send(stored_webhook(stored), context)

    async def _run(self, stored: Any, context: RunContext) -> Any:
        return await self._commands.run(stored_command(stored), context)

    def _handle(self, handler: Handler, payload: dict[str, Any], context: RunContext) -> Any:
        try:
            arguments = handler.arguments.parse(payload)
        except ValidationError:
            # It was posted to another release, or written into the table by hand.
            words = in_words(handler.arguments.faults(payload))
            raise Fail(f"the payload does not fit the handler: {words}") from None
        if handler.options.isolation:
            return self._workers.call(
                handler.function, arguments, context, handler.context, handler.options.no_retry_for
            )
        if handler.context is not None:
            arguments[handler.context] = context
        return handler.function(**arguments)

    def _without_handler(self, claim: Claim) -> Outcome:
        late = (claim.started_at - claim.due).total_seconds()
        if claim.expects_handler or self._unknown_tasks is UnknownTasks.Reject:
            shortest, longest = _PARKED_SECONDS
            return Parked(
                own_words.waiting(claim.name),
                min(max(late / 2, shortest), longest),
            )
        return Succeeded(own_words.time_kept(claim.name, claim.started_at, late))


def stored_command(document: Any) -> list[str]:
    """Return a command as it stands in the database.

    Raises:
        Fail: it is none; another release or another program may have stored it.
    """
    try:
        return _COMMAND.validate_python(document)
    except ValidationError as error:
        raise Fail(f"this command cannot be run: {error.errors()[0]['msg']}") from None


def refusal_of_stored(
    guard: Guard, commands: Commands, webhook: Any | None, command: Any | None
) -> str | None:
    """Return why a stored webhook, or command, would not be carried out, as far as is known."""
    try:
        if webhook is not None:
            return guard.refusal(stored_webhook(webhook).url)
        return commands.refusal(stored_command(command))
    except Fail as failure:
        return str(failure)
