"""What carries out tasks, built from the settings: handlers, webhooks, commands, workers."""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack

from job_scheduler.clock import Clock
from job_scheduler.config import Settings
from job_scheduler.core.handlers.processes.commands import Commands, environment_of_commands
from job_scheduler.core.handlers.processes.pool import Workers
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.handlers.webhook.guard import Guard
from job_scheduler.core.handlers.webhook.sending import WebhookSender
from job_scheduler.core.handlers.webhook.transport import GuardedTransport
from job_scheduler.core.handlers.works import Works
from job_scheduler.core.lanes import Lane
from job_scheduler.core.shares import Share
from job_scheduler.core.store import DueTask


def build_works(
    stack: AsyncExitStack, settings: Settings, registry: HandlerRegistry, clock: Clock
) -> Works:
    """Build what carries out webhooks, commands and isolated handlers."""
    guard = Guard(settings.webhooks_allowed)
    webhooks = WebhookSender(GuardedTransport(guard), settings.webhook_keys, clock)
    stack.push_async_callback(webhooks.close)
    workers = Workers(
        settings.processes,
        settings.modules,
        settings.process_memory_bytes,
        settings.log_level,
        max_result_bytes=settings.max_result_bytes,
    )
    stack.push_async_callback(workers.close)
    environment = environment_of_commands(os.environ, settings.command_variables)
    commands = Commands(settings.allowed_commands, environment)
    return Works(registry, guard, webhooks, commands, workers, settings.unknown_tasks)


def build_lanes(
    works: Works, settings: Settings, share: Callable[[], Share]
) -> Callable[[DueTask], Lane]:
    """Return which lane a task runs in: plain handlers need a thread each, others a process.

    Each begins with this instance's `share`.
    """
    in_threads, in_processes = Lane(settings.threads, share), Lane(settings.processes, share)
    on_loop = Lane(settings.max_running, share)

    def lane_of(task: DueTask) -> Lane:
        if works.needs_process(task):
            return in_processes
        return in_threads if works.needs_thread(task) else on_loop

    return lane_of
