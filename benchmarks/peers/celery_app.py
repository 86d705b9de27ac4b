"""Celery's application: an ETA task on Redis, results kept."""

from celery import Celery

from benchmarks.peers.kit import REDIS_URL, ran

app = Celery("bench", broker=REDIS_URL, backend=REDIS_URL)
# An ETA beyond the visibility timeout would be delivered twice; late ones are acknowledged late.
app.conf.broker_transport_options = {"visibility_timeout": 86_400}


def note(number: int) -> None:
    """Note that it has started."""
    ran(number)


noop = app.task(name="noop")(note)
