"""Alembic's entry: runs on the connection and inside the transaction that the caller opened."""

from alembic import context

from job_scheduler.core.event_models import TaskEvent

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=TaskEvent.metadata,  # that of all tables
    transactional_ddl=True,
)
context.run_migrations()
