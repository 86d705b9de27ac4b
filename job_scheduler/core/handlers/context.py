"""What a handler may know of its own run."""


class RunContext:
    """The run that a handler is called for: handed to a parameter annotated with this class.

    `attempt` counts from 1. `token` is the claim's own: no two runs ever have the same, and
    an outside system may use it to tell a repeated run from the first.
    """

    def __init__(self, task_id: str, attempt: int, token: str) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.token = token
        self._should_stop = False

    @property
    def should_stop(self) -> bool:
        """Whether the handler had better come to an end: the service stops, say.

        A plain handler that takes long asks now and then; an async one is cancelled in the end.
        """
        return self._should_stop

    def ask_to_stop(self) -> None:
        """Let `should_stop` be true from now on."""
        self._should_stop = True
