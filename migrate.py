"""Create or update the database's schema: `python migrate.py`."""

import sys

from job_scheduler.cli import migrate

if __name__ == "__main__":
    sys.exit(migrate())
