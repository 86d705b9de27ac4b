"""The pattern of the tutorials (tutorial_app.py), served as the bare route is."""

from typing import ClassVar

from sqlalchemy import create_engine, text

from benchmarks.peers.bare_route import BareRoute
from benchmarks.peers.kit import DB_URL, serve


class Tutorial(BareRoute):
    """Knows no bulk insert: tasks are posted one by one."""

    app: ClassVar = "benchmarks.peers.tutorial_app:app"

    async def left(self) -> int:
        """Count what is not done."""
        engine = create_engine(DB_URL)
        with engine.connect() as connection:
            statement = text("SELECT count(*) FROM tasks WHERE status = 'scheduled'")
            waiting: int = connection.execute(statement).scalar_one()
        engine.dispose()
        return waiting


if __name__ == "__main__":
    serve(Tutorial)
