"""The built-in work of a task: one HTTP request, signed, to an address that may be reached."""
