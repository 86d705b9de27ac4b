"""Job Scheduler Service: runs tasks at their time, once, and keeps the result.

Task handlers are registered with ``task``::

    from job_scheduler import task

    @task("greet")
    def greet(name: str) -> str:
        return f"Hello {name}"
"""

from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.raised import Fail, RetryLater
from job_scheduler.core.handlers.registry import task

__version__ = "0.1.0"
__all__ = ["Fail", "RetryLater", "RunContext", "__version__", "task"]
