"""Work outside this process: plain handlers in worker processes, and commands."""
