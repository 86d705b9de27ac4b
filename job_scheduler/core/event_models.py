"""The tables of what changed. They are written by triggers, and only while somebody watches.

So a change shows whoever made it: an instance, a person, another program by plain SQL.
"""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, Integer, Text
from sqlalchemy.orm import Mapped, mapped_column

from job_scheduler.core.columns import TAGS_TYPE, UUID_TYPE, UtcDateTime
from job_scheduler.core.models import Base

_NUMBER = BigInteger().with_variant(Integer, "sqlite")


class TaskEvent(Base):
    """A change of a task's status; `former` is None for a new task, `status` for one that is gone.

    `xid` is the transaction on PostgreSQL, where one that began later may end earlier: events are
    read in the order of transactions, up to the oldest that is still under way. On SQLite, which
    has one writer at a time, it is 0.
    """

    __tablename__ = "task_events"

    event_id: Mapped[int] = mapped_column(_NUMBER, Identity(always=True), primary_key=True)
    xid: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    task_id: Mapped[str] = mapped_column(UUID_TYPE)
    name: Mapped[str] = mapped_column(Text)
    status: Mapped[str | None] = mapped_column(Text)
    former: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(Integer)
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str] | None] = mapped_column(TAGS_TYPE)

    __table_args__ = (
        Index("ix_task_events_order", "xid", "event_id"),
        {"sqlite_autoincrement": True},
    )


class EventWatch(Base):
    """Until when changes are noted, and from which place on none is missing. At most one row."""

    __tablename__ = "event_watch"

    singleton: Mapped[int] = mapped_column(Integer, primary_key=True, server_default="1")
    until: Mapped[datetime] = mapped_column(UtcDateTime)
    floor_xid: Mapped[int] = mapped_column(BigInteger)
    floor_event: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (CheckConstraint("singleton = 1", name="singleton"),)
