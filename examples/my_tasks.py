"""A module of task handlers to begin with: copy it, and put your own work in.

TASK_MODULES=examples.my_tasks make run
"""

import asyncio
from datetime import date
from typing import Annotated

from pydantic import BaseModel, Field

from job_scheduler import Fail, RetryLater, RunContext, task


class Invoice(BaseModel):
    """What a payload may hold: it is examined when the task is posted."""

    customer: str
    amount: Annotated[float, Field(gt=0, examples=[19.5])]
    due: date


@task("greet")
def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello {name}"


@task("send_invoices", timeout=60)
async def send_invoices(invoices: list[Invoice], context: RunContext) -> dict[str, float]:
    """Send invoices one after the other, and tell how far that has come."""
    total = 0.0
    for number, invoice in enumerate(invoices, start=1):
        await asyncio.sleep(0.01)  # here it would be sent
        total += invoice.amount
        context.progress(number / len(invoices), f"sent to {invoice.customer}")
    context.logger.info("sent %d invoices", len(invoices))
    return {"invoices": len(invoices), "total": total}


@task("charge", max_attempts=5, retry_delay=[0.2, 1, 10])
def charge(customer: int, context: RunContext) -> str:
    """Charge a customer; the bank is busy at first."""
    if customer == 0:
        raise Fail("there is no such customer")  # failed at once
    if context.attempt == 1:
        raise RetryLater(after=0.2, reason="the bank is busy")
    return f"charged {customer} at attempt {context.attempt}"


@task("count_primes", isolation="process", timeout=30)
def count_primes(below: Annotated[int, Field(le=10_000_000)]) -> int:
    """Count the primes below a number: hard work, which a process of its own does."""
    sieve = bytearray([1]) * below
    sieve[:2] = bytes(min(below, 2))
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return sum(sieve)
