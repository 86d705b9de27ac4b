"""The statements about instances: who takes part, who lives, who decides at start-up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import Connection, Table, delete, func, insert, or_, select, text, update

from job_scheduler.constants import InstanceState
from job_scheduler.core.columns import database_now, database_time
from job_scheduler.core.models import Instance
from job_scheduler.core.shares import Share
from job_scheduler.process import ProcessIdentity

instances = cast("Table", Instance.__table__)

_ELECTION_KEY = 5_214_786_390_119  # the next number after the migrations' own


@dataclass(frozen=True, slots=True)
class Member:
    """A process that takes part, under the id by which the others know it."""

    instance_id: str
    process: ProcessIdentity


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """An instance as the others see it."""

    instance_id: str
    process: ProcessIdentity
    state: InstanceState
    heartbeat_seq: int
    heartbeat_at: datetime


def register(connection: Connection, member: Member, state: InstanceState) -> None:
    """Add an instance."""
    connection.execute(
        insert(instances).values(
            instance_id=member.instance_id,
            host=member.process.host,
            pid=member.process.pid,
            process_started=member.process.started,
            state=state.value,
        )
    )


def serialize_election(connection: Connection) -> None:
    """Let one instance at a time look at the others and draw its conclusion.

    On SQLite the transaction itself, begun IMMEDIATE, does that.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ELECTION_KEY})


def others(connection: Connection, instance_id: str) -> list[InstanceRow]:
    """Return all instances but this one that are not dead."""
    return [one for one in not_dead(connection) if one.instance_id != instance_id]


def not_dead(connection: Connection) -> list[InstanceRow]:
    """Return all instances that have not stopped and were not found dead."""
    rows = connection.execute(
        select(instances).where(instances.c.state != InstanceState.Dead.value)
    )
    return [
        InstanceRow(
            row.instance_id,
            ProcessIdentity(row.host, row.pid, row.process_started),
            InstanceState(row.state),
            row.heartbeat_seq,
            row.heartbeat_at,
        )
        for row in rows
    ]


def move(
    connection: Connection, instance_id: str, former: Sequence[InstanceState], state: InstanceState
) -> bool:
    """Change an instance's state from one of `former`; tell whether it was in one."""
    changed = connection.execute(
        update(instances)
        .where(
            instances.c.instance_id == instance_id,
            instances.c.state.in_([one.value for one in former]),
        )
        .values(state=state.value)
    )
    return bool(changed.rowcount)


def remains(connection: Connection, instance_id: str, state: InstanceState) -> bool:
    """Tell whether an instance is in a state; if so, nobody buries it before the commit."""
    found = connection.scalar(
        select(instances.c.instance_id)
        .where(instances.c.instance_id == instance_id, instances.c.state == state.value)
        .with_for_update(read=True, key_share=True)
    )
    return found is not None


def bury(connection: Connection, condemned: Sequence[InstanceRow]) -> list[str]:
    """Mark instances dead, unless their heart has beaten since; return the ids of the dead.

    Their last heartbeat stays: it tells until when they lived. Their rows are locked FOR UPDATE
    first: that collides with the FOR KEY SHARE of a claim, so that one which is under way ends
    before, and none begins after.
    """
    seen = {other.instance_id: other.heartbeat_seq for other in condemned}
    rows = connection.execute(
        select(instances.c.instance_id, instances.c.heartbeat_seq)
        .where(
            instances.c.instance_id.in_(seen),
            instances.c.state != InstanceState.Dead.value,
        )
        .order_by(instances.c.instance_id)
        .with_for_update()
    )
    dead = [row.instance_id for row in rows if row.heartbeat_seq == seen[row.instance_id]]
    connection.execute(
        update(instances)
        .where(instances.c.instance_id.in_(dead))
        .values(state=InstanceState.Dead.value)
    )
    return dead


def beat(connection: Connection, instance_id: str) -> bool:
    """Raise an instance's heartbeat; False when it has been declared dead meanwhile."""
    beaten = connection.execute(
        update(instances)
        .where(
            instances.c.instance_id == instance_id,
            instances.c.state != InstanceState.Dead.value,
        )
        .values(heartbeat_seq=instances.c.heartbeat_seq + 1, heartbeat_at=database_now())
    )
    return bool(beaten.rowcount)


def share_of(connection: Connection, instance_id: str) -> Share:
    """Return an instance's share of the work among those that take part, itself included."""
    takes_part = or_(
        instances.c.state == InstanceState.Alive.value, instances.c.instance_id == instance_id
    )
    before = func.count().filter(instances.c.instance_id < instance_id)
    place, number = connection.execute(select(before, func.count()).where(takes_part)).one()
    return Share(place, number)


def leave(connection: Connection, instance_id: str) -> None:
    """Mark an instance as stopped in order, at this moment."""
    connection.execute(
        update(instances)
        .where(instances.c.instance_id == instance_id)
        .values(state=InstanceState.Dead.value, heartbeat_at=database_now())
    )


def last_heartbeat(connection: Connection, instance_id: str) -> datetime | None:
    """Return when any other instance was last known to live; None when there was none."""
    return connection.scalar(
        select(instances.c.heartbeat_at)
        .where(instances.c.instance_id != instance_id)
        .order_by(instances.c.heartbeat_at.desc())
        .limit(1)
    )


def started_at(connection: Connection, instance_id: str) -> datetime:
    """Return when an instance registered, by the database's clock."""
    started: datetime = connection.execute(
        select(instances.c.started_at).where(instances.c.instance_id == instance_id)
    ).scalar_one()
    return started


def forget_long_dead(connection: Connection, age: timedelta) -> None:
    """Remove instances that died longer than `age` ago: each start adds one."""
    now = database_time(connection)
    connection.execute(
        delete(instances).where(
            instances.c.state == InstanceState.Dead.value,
            instances.c.heartbeat_at < now - age,
        )
    )
