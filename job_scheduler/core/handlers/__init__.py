"""What a task does: the registry of handlers, and how one is called."""
