"""The registry of task handlers."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from job_scheduler.constants import NAME_MAX_LENGTH
from job_scheduler.core.handlers.arguments import Arguments, parameters
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.options import Options
from job_scheduler.core.handlers.processes.importable import importable
from job_scheduler.core.limits import HandlerLimit
from job_scheduler.core.retry import DELAY_SECONDS, MAX_DELAY_SECONDS

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that tasks of one name run; a plain one is called in a thread.

    `context` names the parameter that gets the ``RunContext``, if there is one; the others are
    its `arguments`.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    context: str | None
    arguments: Arguments
    options: Options

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], options: Options) -> "Handler":
        """Return what there is to know of a function.

        Raises:
            ValueError: it has a parameter that a payload cannot bring, or cannot be isolated.
        """
        context = _context_parameter(function)
        arguments = Arguments(name, function, context)
        is_async = _is_async(function)
        if options.isolation:
            obstacle = "it is async" if is_async else importable(function)
            if obstacle:
                raise ValueError(f"the handler of {name!r} cannot run in a process: {obstacle}")
        return cls(name, function, is_async, context, arguments, options)

    @property
    def takes_thread(self) -> bool:
        """Whether it occupies a thread of this process while it runs."""
        return not self.is_async and self.options.isolation is None

    @property
    def description(self) -> str:
        """What the function's docstring says."""
        return inspect.getdoc(self.function) or ""


class HandlerRegistry:
    """Handlers by name."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def task(
        self,
        name: str,
        *,
        max_attempts: int = 1,
        retry_delay: float | list[float] = DELAY_SECONDS,
        retry_max_delay: float = MAX_DELAY_SECONDS,
        timeout: float | None = None,
        no_retry_for: Sequence[type[BaseException]] = (),
        isolation: Literal["process"] | None = None,
        max_running: int | None = None,
        rate_limit: str | None = None,
    ) -> Callable[[Function], Function]:
        """Register the decorated function, plain or async, as the handler of tasks named `name`.

        It is called with the members of a task's payload as keyword arguments, which are examined
        when the task is posted, and made (by pydantic) what its annotations ask for. What it
        returns (text, or anything that has a JSON form) is the task's result; when it raises, the
        task is tried again while attempts are left, and fails then. A parameter annotated
        ``RunContext`` gets what the handler may know of its run.

        The options are for tasks that do not say so themselves: `max_attempts`, `retry_delay`,
        `retry_max_delay` and `timeout` mean what they mean in ``POST /tasks``. An exception of a
        type in `no_retry_for` makes the task fail at once.

        With ``isolation="process"`` a plain function runs in a worker process, which is killed
        with all that it has started when its time is over, the task is cancelled, or it takes too
        much memory. The function must stand at the top of a module: it is found there by its name.

        Of all tasks of this handler at most `max_running` run at a time, and as many start as
        `rate_limit` says (``10/second``, ``100/minute``, ``1000/hour``), on all instances together;
        the others wait.

        Raises:
            ValueError: the name or an option is unusable, the name has a handler already, the
                function has a parameter that a payload cannot bring, or cannot be isolated.
        """
        if not isinstance(name, str) or not name.strip() or len(name) > NAME_MAX_LENGTH:
            raise ValueError(
                f"a task needs a name of 1 to {NAME_MAX_LENGTH} characters: "
                f'@task("send_report"), not {name!r}'
            )
        options = Options(
            max_attempts,
            retry_delay,
            retry_max_delay,
            timeout,
            tuple(no_retry_for),
            isolation,
            max_running,
            rate_limit,
        )

        def register(function: Function) -> Function:
            if name in self._handlers:
                raise ValueError(f"two handlers are registered under the name {name!r}")
            self._handlers[name] = Handler.of(name, function, options)
            return function

        return register

    def get(self, name: str) -> Handler | None:
        """Return the handler of tasks named `name`, if there is one."""
        return self._handlers.get(name)

    def all(self) -> list[Handler]:
        """Return all handlers, by name."""
        return [self._handlers[name] for name in self.names()]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._handlers)

    def limits(self) -> dict[str, HandlerLimit]:
        """Return the limits of those handlers that have some, by name."""
        return {
            handler.name: limit
            for handler in self.all()
            if (limit := handler.options.limit) is not None
        }

    def with_defaults(self, defaults: "HandlerRegistry") -> "HandlerRegistry":
        """Return a registry of these handlers and those of `defaults` whose names are free."""
        merged = HandlerRegistry()
        merged._handlers = defaults._handlers | self._handlers
        return merged


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 (an object with an async __call__)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _context_parameter(function: Callable[..., Any]) -> str | None:
    wanted = (RunContext, "RunContext", "job_scheduler.RunContext")
    return next((each.name for each in parameters(function) if each.annotation in wanted), None)


registered = HandlerRegistry()
"""What the modules of ``TASK_MODULES`` register as they are imported."""

task = registered.task
