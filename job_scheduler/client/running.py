"""Who puts the questions: a client that waits, and one that awaits; and operations of both."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import httpx

from job_scheduler.client.exchange import Answer, Ask, Steps

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """Puts the questions of an operation, and waits for each answer."""

    _http: httpx.Client
    _timeout: float
    _pause: Callable[[float], object]

    def _run(self, steps: Steps[T]) -> T:
        try:
            ask = next(steps)
            while True:
                ask = steps.send(self._answer(ask))
        except StopIteration as end:
            result: T = end.value
            return result

    def _answer(self, ask: Ask) -> Answer:
        if ask.after:
            self._pause(ask.after)
        try:
            return self._http.request(**_arguments(ask, self._timeout))
        except httpx.RequestError as error:
            return error


class Awaiting:
    """Puts the questions of an operation, and awaits each answer."""

    _http: httpx.AsyncClient
    _timeout: float
    _pause: Callable[[float], Awaitable[object]]

    async def _run(self, steps: Steps[T]) -> T:
        try:
            ask = next(steps)
            while True:
                ask = steps.send(await self._answer(ask))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _answer(self, ask: Ask) -> Answer:
        if ask.after:
            await self._pause(ask.after)
        try:
            return await self._http.request(**_arguments(ask, self._timeout))
        except httpx.RequestError as error:
            return error


class operation(Generic[P, T]):  # noqa: N801 (it is used as a decorator)
    """A method that is written once: a client that waits returns what it comes to; the other one
    returns something to be awaited.
    """

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._steps = steps

    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: object) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: object) -> Callable[P, Any]:
        """Return the method of a client."""

        def call(*arguments: P.args, **members: P.kwargs) -> Any:
            return client._run(self._steps(client, *arguments, **members))

        return update_wrapper(call, self._steps)


def _arguments(ask: Ask, timeout: float) -> dict[str, Any]:
    """Return a question as httpx takes it."""
    declared = {} if ask.body is None else {"Content-Type": "application/json"}
    return {
        "method": ask.method,
        "url": ask.path,
        "params": list(ask.query) or None,
        "content": ask.body,
        "headers": {**ask.headers, **declared},
        "timeout": timeout + ask.wait,
    }
