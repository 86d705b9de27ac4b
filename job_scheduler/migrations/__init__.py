"""The schema's history (Alembic), and the one way to bring a database up to date."""
