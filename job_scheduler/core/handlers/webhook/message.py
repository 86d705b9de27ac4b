"""What is sent: the request that a webhook describes, with what the service adds to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx

from job_scheduler import __version__, strict_json
from job_scheduler.clock import in_iso_8601
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.raised import Fail
from job_scheduler.core.handlers.webhook.signing import signature
from job_scheduler.core.schemas_webhook import Webhook
from job_scheduler.urls import parse_url, shown


@dataclass(frozen=True, slots=True)
class Message:
    """A request before it is signed; `headers` are the user's own."""

    method: str
    url: str
    headers: httpx.Headers
    body: bytes

    @classmethod
    def of(cls, webhook: Webhook) -> "Message":
        """Return the request that a webhook describes."""
        headers = httpx.Headers(webhook.headers)
        if webhook.body is None:
            return cls(webhook.method, webhook.url, headers, b"")
        if isinstance(webhook.body, str) and "content-type" in headers:
            return cls(webhook.method, webhook.url, headers, webhook.body.encode())
        headers.setdefault("Content-Type", "application/json")
        body = strict_json.dumps(webhook.body).encode()
        return cls(webhook.method, webhook.url, headers, body)

    def __str__(self) -> str:
        """Return what may be shown of it."""
        return f"{self.method} {shown(self.url)}"

    def request(self, context: RunContext, keys: Sequence[bytes], now: datetime) -> httpx.Request:
        """Return the request for one attempt, signed by each of the keys."""
        timestamp = int(now.timestamp())
        headers = httpx.Headers(
            {
                "Accept-Encoding": "identity",  # a small body may hold a huge one
                "User-Agent": f"job-scheduler/{__version__}",
            }
        )
        headers.update(self.headers)
        headers["webhook-id"] = context.task_id
        headers["webhook-timestamp"] = str(timestamp)
        if keys:
            headers["webhook-signature"] = signature(keys, context.task_id, timestamp, self.body)
        headers["Job-Scheduler-Task-Id"] = context.task_id
        headers["Job-Scheduler-Attempt"] = str(context.attempt)
        headers["Job-Scheduler-Scheduled-For"] = in_iso_8601(context.scheduled_for)
        return httpx.Request(self.method, self.url, headers=headers, content=self.body or None)

    def redirected(self, status: int, location: str) -> "Message":
        """Return the request that follows on a redirect.

        The method changes as it does in browsers. Another origin does not get the user's own
        headers, which may hold secrets.

        Raises:
            Fail: it leads nowhere that may be followed.
        """
        try:
            url = str(httpx.URL(self.url).join(location))
            before, after = parse_url(self.url), parse_url(url)
        except (httpx.InvalidURL, ValueError) as error:
            words = f"{self} answered {status}, and its Location cannot be used: {error}"
            raise Fail(words) from None
        if before.is_secure and not after.is_secure:
            raise Fail(f"{self} answered {status}, but is not followed from https to http")
        method, body, headers = self.method, self.body, self.headers.copy()
        if before != after:
            kept = headers.get("content-type")
            headers = httpx.Headers({"Content-Type": kept} if kept else {})
        if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
            method, body = "GET", b""
            headers.pop("content-type", None)
        return Message(method, url, headers, body)
