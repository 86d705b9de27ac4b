"""The heartbeat: tells the other instances that this one lives.

It has a thread and a connection of its own, which no handler, full pool or blocked event loop
can hold up.
"""

import logging
import threading
import time
from collections.abc import Callable

from job_scheduler.constants import InstanceState
from job_scheduler.core import instances
from job_scheduler.core.instances import Member
from job_scheduler.core.shares import Share
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable

_logger = logging.getLogger(__name__)

_BEATS_PER_LEASE = 5
_TRIES_PER_LEASE = 3
"""A heartbeat that gets no answer is given up after this part of the lease, so that the next one,
through a new connection, comes before the lease is over."""


class Heartbeat:
    """Raises `member`'s heartbeat five times a lease (`lease` is in seconds).

    An instance that the others have declared dead (it was paused for longer than its lease)
    takes part again under a new id, from `new_id`: what it claimed under the old one is lost.
    That holds once it has joined the others; before that, it is only starting anew.
    Before each beat it calls `check_loop`, which may end a process whose loop hangs.
    """

    def __init__(
        self,
        database: Database,
        member: Member,
        lease: float,
        new_id: Callable[[], str],
        check_loop: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._member = member
        self._share = Share()
        self._new_id = new_id
        self._lease = lease
        self._monotonic = monotonic
        self._check_loop = check_loop
        self._reborn_as = InstanceState.Starting
        self._beaten_at = monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def member(self) -> Member:
        """This instance, as it takes part at present."""
        return self._member

    @property
    def instance_id(self) -> str:
        """The id under which this instance claims at present."""
        return self._member.instance_id

    @property
    def share(self) -> Share:
        """This instance's share of the tasks of one instant, as of the last beat."""
        return self._share

    def silent_for(self) -> float:
        """Return for how many seconds no heartbeat has reached the database, at most."""
        return self._monotonic() - self._beaten_at

    def holds_lease(self, instance_id: str) -> bool:
        """Tell whether nobody can have taken `instance_id`, which was this one's, for dead yet.

        Whoever buries it has seen it silent for a lease, and has seen it no earlier than it sent
        the heartbeat from which it reckons itself. The time of one beat is left over, since two
        machines' clocks do not run equally fast.
        """
        certain = self._lease * (1 - 1 / _BEATS_PER_LEASE)
        return instance_id == self.instance_id and self.silent_for() < certain

    def note_joined(self) -> None:
        """Take note that the start is over: this instance takes part."""
        self._reborn_as = InstanceState.Alive

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and tell the others that this instance has stopped in order.

        Waits for the database, for which the caller may not want to wait.
        """
        self._stop.set()
        self._thread.join()
        try:
            with self._database.writing(self._lease / _TRIES_PER_LEASE) as connection:
                instances.leave(connection, self.instance_id)
        except DatabaseUnavailable:
            _logger.warning("the database is away: the others will find this instance gone")
        self._database.close()

    def beat(self) -> None:
        """Raise the heartbeat once.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        sent_at = self._monotonic()
        reborn = None
        with self._database.writing(self._lease / _TRIES_PER_LEASE) as connection:
            if not instances.beat(connection, self.instance_id):
                reborn = Member(self._new_id(), self._member.process)
                instances.register(connection, reborn, self._reborn_as)
            share = instances.share_of(connection, (reborn or self._member).instance_id)
        if reborn is not None:
            _logger.warning(
                "this instance was declared dead as %s: it takes part again as %s",
                self.instance_id,
                reborn.instance_id,
            )
            self._member = reborn
        self._share = share
        self._beaten_at = sent_at

    def _run(self) -> None:
        while not self._stop.wait(self._lease / _BEATS_PER_LEASE):
            self._check_loop()
            try:
                self.beat()
            except DatabaseUnavailable:
                continue  # The sweep logs it; nobody is declared dead by an outage.
            except Exception:
                _logger.exception("a heartbeat failed")
