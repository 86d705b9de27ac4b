"""The cancellation of runs: whoever asks for it writes it into the task's row, whoever runs it
looks there.
"""

from collections.abc import Callable, Collection

from job_scheduler.core.store import cancelled_runs
from job_scheduler.database import Database


class Cancellation:
    """Has the runs of this instance cancelled whose end is asked for, wherever that was.

    `cancel` gets the tokens of the runs.
    """

    def __init__(
        self,
        database: Database,
        instance_id: Callable[[], str],
        cancel: Callable[[Collection[str]], None],
    ) -> None:
        self._database = database
        self._instance_id = instance_id
        self._cancel = cancel

    async def look(self) -> None:
        """Look once.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        if tokens := await self._database.read(cancelled_runs, self._instance_id()):
            self._cancel(set(tokens))
