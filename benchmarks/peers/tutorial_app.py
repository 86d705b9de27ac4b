"""What tutorials write: FastAPI, a SQLAlchemy session a request, APScheduler, a lock in Redis.

Our own text of a pattern that is met in hundreds of repositories; its parts are as they are met,
their defaults included (a job that starts more than a second late is dropped by APScheduler).
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import redis
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import JSON, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks.peers.kit import ran

engine = create_engine(os.environ["BENCH_DB"], pool_size=20, max_overflow=20)
SessionLocal = sessionmaker(bind=engine)
locks = redis.Redis.from_url(os.environ["BENCH_REDIS"])
scheduler = AsyncIOScheduler()


class Base(DeclarativeBase):
    """The tables."""


class Task(Base):
    """A task."""

    __tablename__ = "tasks"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    run_at: Mapped[datetime]
    status: Mapped[str] = mapped_column(default="scheduled")
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))


class TaskIn(BaseModel):
    """The request."""

    name: str
    run_at: datetime
    payload: dict[str, Any]


class TaskOut(TaskIn):
    """The response."""

    id: UUID
    status: str
    result: str | None
    created_at: datetime


def get_db() -> Iterator[Session]:
    """A session for a request."""
    with SessionLocal() as db:
        yield db


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Tables, and the scheduler."""
    Base.metadata.create_all(engine)
    scheduler.start()
    yield
    scheduler.shutdown(wait=False)


app = FastAPI(lifespan=lifespan)


@app.post("/tasks", status_code=201, response_model=TaskOut)
def create_task(wanted: TaskIn, db: Annotated[Session, Depends(get_db)]) -> Task:
    """Store and schedule a task."""
    task = Task(name=wanted.name, run_at=wanted.run_at, payload=wanted.payload)
    db.add(task)
    db.commit()
    db.refresh(task)
    scheduler.add_job(run_task, "date", run_date=wanted.run_at, args=[task.id], id=str(task.id))
    return task


def run_task(task_id: UUID) -> None:
    """Run a task, if nobody else does (APScheduler calls it in its thread pool)."""
    if not locks.set(f"lock:{task_id}", "1", nx=True, ex=60):
        return
    try:
        with SessionLocal() as db:
            task = db.get(Task, task_id)
            if task is None or task.status != "scheduled":
                return
            ran(task.payload["number"])
            task.status = "done"
            db.commit()
    finally:
        locks.delete(f"lock:{task_id}")
