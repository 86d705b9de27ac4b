"""Alembic's entry: runs on the connection and inside the transaction that the caller opened."""

from alembic import context

from job_scheduler.core.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
context.run_migrations()
