"""The chaos command: real instances under random faults, and a check of what is promised.

``plan`` says what happens when; ``cluster``, ``workload`` and ``faults`` carry it out on a
database of the run's own; handlers note their runs in a ``ledger``; ``checks`` compares all
that was seen with what is promised.
"""
