"""`python -m job_scheduler`: the command line."""

from job_scheduler.cli import main

main()
