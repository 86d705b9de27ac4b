"""Importing any module of the package starts no thread, opens nothing and reads no setting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import job_scheduler
from tests.support.app import ROOT

PACKAGE = Path(job_scheduler.__file__).parent
# Alembic runs these by itself, inside a migration.
NOT_IMPORTED = ("migrations/env.py", "migrations/versions")

# What the package stands on may open what it likes as it is imported: that is not ours.
LIBRARIES = (
    "alembic.command",
    "apscheduler.schedulers.asyncio",
    "fastapi",
    "psycopg2",
    "pydantic_settings",
    "redis",
    "sqlalchemy",
    "typer",
    "uvicorn",
)

# Imports one module after the other, and tells for each what the interpreter reports: sockets,
# processes, databases, and files that are opened for writing (or are the settings).
WATCH = """
import json, os, sys, threading

EVENTS = {"socket.__new__", "socket.connect", "subprocess.Popen", "os.fork", "sqlite3.connect"}
noted = []

def note(event, arguments):
    if event in EVENTS:
        noted.append(event)
    elif event == "open" and "__pycache__" not in str(arguments[0]):
        if set(str(arguments[1])) & set("wax+") or str(arguments[0]).endswith(".env"):
            noted.append(f"open {arguments[0]}")

def descriptors():
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0

libraries, modules = json.loads(sys.argv[1])
for name in libraries:
    __import__(name)
sys.addaudithook(note)
for name in modules:
    noted.clear()
    before = descriptors()
    __import__(name)
    names = [thread.name for thread in threading.enumerate()]
    print(json.dumps([name, noted, names, descriptors() - before]))
"""

Found = tuple[list[str], list[str], int]
NOTHING: Found = ([], ["MainThread"], 0)


def modules() -> list[str]:
    """The names of all modules of the package."""
    files = [
        file
        for file in sorted(PACKAGE.rglob("*.py"))
        if not str(file.relative_to(PACKAGE)).startswith(NOT_IMPORTED)
    ]
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def import_watched(directory: Path, *names: str) -> dict[str, Found]:
    """Import modules in a process of its own; return what each opened, and the threads."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))
    }
    found = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps([LIBRARIES, names])],
        cwd=directory,
        # Whoever read the settings would stumble.
        env=environment | {"PYTHONPATH": str(ROOT), "THREADS": "none", "DB_URL": "nonsense"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    return {name: (noted, threads, descriptors) for name, noted, threads, descriptors in lines}


def test_importing_a_module_starts_and_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("THREADS=none\n")
    # The command line starts the service when it is imported under this name.
    names = [name for name in modules() if name != "job_scheduler.__main__"]
    assert {"job_scheduler", "job_scheduler.main", "job_scheduler.core.tasks"} <= set(names)
    assert import_watched(tmp_path, *names) == dict.fromkeys(names, NOTHING)
    assert [file.name for file in tmp_path.iterdir()] == [".env"]


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "guilty.py").write_text(
        "import socket, sqlite3, threading\n"
        "open_socket = socket.socket()\n"
        "waiting = threading.Event()\n"
        "threading.Thread(target=waiting.wait, args=[5], name='guilty', daemon=True).start()\n"
        "database = sqlite3.connect('guilty.db')\n"
        "notes = open('notes', 'w')\n"
        "open('.env', 'a').close()\n"
    )
    noted, threads, descriptors = import_watched(tmp_path, "guilty")["guilty"]
    assert {"socket.__new__", "sqlite3.connect", "open notes", "open .env"} <= set(noted)
    assert threads == ["MainThread", "guilty"]
    assert descriptors >= 2 or not Path("/proc/self/fd").exists()
