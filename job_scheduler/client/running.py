"""Who puts the questions: a client that waits, and one that awaits; and operations of both."""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from contextlib import AsyncExitStack, ExitStack
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import httpx

from job_scheduler.client import lines
from job_scheduler.client.exchange import Answer, Ask, Call, Flow, More, Part, Steps

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
                self._wait(ask)
                ask = steps.send(self._answer(ask))
        except StopIteration as end:
            result: T = end.value
            return result

    def _go_through(self, flow: Flow[T]) -> Generator[T, None, None]:
        reply: Any = None
        chunks: Iterator[bytes]
        has_begun = False
        with ExitStack() as opened:
            while True:
                try:
                    step = flow.send(reply)
                except StopIteration:
                    return
                reply = None
                if isinstance(step, Ask):
                    opened.close()
                    self._wait(step)
                    if has_begun and self._http.is_closed:
                        return
                    reply = self._answer(step)
                    if isinstance(reply, httpx.Response):
                        opened.callback(reply.close)
                        chunks = reply.iter_bytes()
                        has_begun = has_begun or reply.is_success
                elif isinstance(step, More):
                    reply = _next(chunks)
                elif isinstance(step, Call):
                    step.function(step.argument)
                else:
                    yield from step

    def _wait(self, ask: Ask) -> None:
        if ask.after:
            self._pause(ask.after)

    def _answer(self, ask: Ask) -> Answer:
        body = ask.body.pieces() if isinstance(ask.body, lines.Lines) else ask.body
        request = self._http.build_request(**_arguments(ask, body, self._timeout))
        try:
            response = self._http.send(request, stream=ask.streamed)
            if not response.is_success:
                response.read()
        except httpx.RequestError as error:
            return error
        return response


class Awaiting:
    """Puts the questions of an operation, and awaits each answer."""

    _http: httpx.AsyncClient
    _timeout: float
    _pause: Callable[[float], Awaitable[object]]

    async def _run(self, steps: Steps[T]) -> T:
        try:
            ask = next(steps)
            while True:
                await self._wait(ask)
                ask = steps.send(await self._answer(ask))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _go_through(self, flow: Flow[T]) -> AsyncGenerator[T, None]:
        reply: Any = None
        chunks: AsyncIterator[bytes]
        has_begun = False
        async with AsyncExitStack() as opened:
            while True:
                try:
                    step = flow.send(reply)
                except StopIteration:
                    return
                reply = None
                if isinstance(step, Ask):
                    await opened.aclose()
                    await self._wait(step)
                    if has_begun and self._http.is_closed:
                        return
                    reply = await self._answer(step)
                    if isinstance(reply, httpx.Response):
                        opened.push_async_callback(reply.aclose)
                        chunks = reply.aiter_bytes()
                        has_begun = has_begun or reply.is_success
                elif isinstance(step, More):
                    reply = await _awaited_next(chunks)
                elif isinstance(step, Call):
                    await step.function(step.argument)
                else:
                    for each in step:
                        yield each

    async def _wait(self, ask: Ask) -> None:
        if ask.after:
            await self._pause(ask.after)

    async def _answer(self, ask: Ask) -> Answer:
        body = ask.body.awaited_pieces() if isinstance(ask.body, lines.Lines) else ask.body
        request = self._http.build_request(**_arguments(ask, body, self._timeout))
        try:
            response = await self._http.send(request, stream=ask.streamed)
            if not response.is_success:
                await response.aread()
        except httpx.RequestError as error:
            return error
        return response


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


class stream(Generic[P, T]):  # noqa: N801 (it is used as a decorator)
    """A method that is written once, and finds one thing after the other: a client that waits
    returns an iterator of them, and the other one an async iterator, which can be closed.
    """

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        self._flow = flow

    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, Generator[T, None, None]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: object) -> Callable[P, AsyncGenerator[T, None]]: ...
    def __get__(self, client: Any, owner: object) -> Callable[P, Any]:
        """Return the method of a client."""

        def call(*arguments: P.args, **members: P.kwargs) -> Any:
            return client._go_through(self._flow(client, *arguments, **members))

        return update_wrapper(call, self._flow)


def _next(chunks: Iterator[bytes]) -> Part:
    try:
        return next(chunks, b"")
    except httpx.RequestError as error:
        return error


async def _awaited_next(chunks: AsyncIterator[bytes]) -> Part:
    try:
        return await anext(chunks, b"")
    except httpx.RequestError as error:
        return error


def _arguments(ask: Ask, body: Any, timeout: float) -> dict[str, Any]:
    """Return a question as httpx takes it."""
    kind = lines.MEDIA_TYPE if isinstance(ask.body, lines.Lines) else "application/json"
    declared = {} if ask.body is None else {"Content-Type": kind}
    return {
        "method": ask.method,
        "url": ask.path,
        "params": list(ask.query) or None,
        "content": body,
        "headers": {**ask.headers, **declared},
        "timeout": timeout + ask.wait,
    }
