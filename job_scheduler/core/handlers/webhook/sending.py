"""Webhooks: one HTTP request for each attempt at a task, and what its answer makes of the task."""

from collections.abc import Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from job_scheduler.clock import Clock
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.raised import Fail, RetryLater
from job_scheduler.core.handlers.webhook.answers import NETWORK_ERRORS, Answer
from job_scheduler.core.handlers.webhook.guard import AddressRefused
from job_scheduler.core.handlers.webhook.message import Message
from job_scheduler.core.schemas_webhook import Webhook

TIMEOUT_SECONDS = 30.0
"""How long a request may take in all, where the task does not say so itself."""
REDIRECTS_MAX = 5


def stored_webhook(document: Any) -> Webhook:
    """Return a webhook as it stands in the database.

    Raises:
        Fail: it is none; another release or another program may have stored it.
    """
    try:
        return Webhook.model_validate(document)
    except ValidationError as error:
        words = "; ".join(
            f"{'.'.join(['webhook', *map(str, details['loc'])])}: {details['msg']}"
            for details in error.errors()
        )
        raise Fail(f"this webhook cannot be sent: {words}") from None


class WebhookSender:
    """Sends webhooks.

    It uses httpx's transport without its client, which would keep cookies between receivers, read
    the whole body of a redirect, and look for proxies and passwords in the environment.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport, keys: Sequence[bytes], clock: Clock
    ) -> None:
        self._transport = transport
        self._keys = keys
        self._clock = clock

    async def send(self, webhook: Webhook, context: RunContext) -> dict[str, Any]:
        """Send a webhook once, and return the answer as the task's result.

        How long it may take is the caller's business: cancelled, it closes the connection.

        Raises:
            Fail: it is not to be repeated.
            RetryLater: it may succeed later.
        """
        message = Message.of(webhook)
        for _ in range(REDIRECTS_MAX + 1):
            answer = await self._exchange(message, context)
            if answer.target is None or not webhook.follow_redirects:
                return answer.result(message, self._clock.now())
            message = message.redirected(answer.status, answer.target)
        raise Fail(f"{Message.of(webhook)} was redirected more than {REDIRECTS_MAX} times")

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _exchange(self, message: Message, context: RunContext) -> Answer:
        request = message.request(context, self._keys, self._clock.now())
        try:
            response = await self._transport.handle_async_request(request)
        except AddressRefused as refusal:
            raise Fail(f"{message}: {refusal}") from None
        except NETWORK_ERRORS as error:
            raise RetryLater(None, f"{message}: {str(error) or 'the connection broke'}") from None
        try:
            return await Answer.read(response)
        finally:
            await response.aclose()
