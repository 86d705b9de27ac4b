"""Importing any module of the package starts no thread, opens nothing and reads no setting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import job_scheduler
from tests.support.app import ROOT

PACKAGE = Path(job_scheduler.__file__).parent
# Alembic runs these by itself, inside a migration.
NOT_IMPORTED = ("migrations/env.py", "migrations/versions")

# Sockets, child processes and files opened for writing, as the interpreter itself reports them.
WATCH = """
import json, os, sys, threading

noted = []

def note(event, arguments):
    if event in ("socket.__new__", "socket.connect", "subprocess.Popen", "os.fork", "sqlite3.connect"):
        noted.append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        if "__pycache__" not in str(arguments[0]):
            noted.append(f"open {arguments[0]}")
    elif event == "open" and str(arguments[0]).endswith(".env"):
        noted.append("open .env")

def descriptors():
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0

for module in sys.argv[2:]:
    __import__(module)
before = descriptors()
sys.addaudithook(note)
__import__(sys.argv[1])
print(json.dumps([noted, [t.name for t in threading.enumerate()], descriptors() - before]))
"""


def modules() -> list[str]:
    """The names of all modules of the package."""
    files = [
        file
        for file in sorted(PACKAGE.rglob("*.py"))
        if not str(file.relative_to(PACKAGE)).startswith(NOT_IMPORTED)
    ]
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def import_watched(name: str, directory: Path, *before: str) -> tuple[list[str], list[str], int]:
    """Import a module in a process of its own; return what it opened and its threads."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))
    }
    found = subprocess.run(
        [sys.executable, "-c", WATCH, name, *before],
        cwd=directory,
        # Whoever read the settings would stumble.
        env=environment | {"PYTHONPATH": str(ROOT), "THREADS": "none", "DB_URL": "nonsense"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    noted, threads, descriptors = json.loads(found.stdout.splitlines()[-1])
    return noted, threads, descriptors


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__main__")])
def test_importing_a_module_starts_and_opens_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("THREADS=none\n")
    noted, threads, descriptors = import_watched(name, tmp_path, *LIBRARIES)
    assert noted == []
    assert threads == ["MainThread"]
    assert descriptors == 0
    assert [file.name for file in tmp_path.iterdir()] == [".env"]


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


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "guilty.py").write_text(
        "import socket, sqlite3, threading\n"
        "open_socket = socket.socket()\n"
        "threading.Thread(target=threading.Event().wait, args=[5], name='guilty', daemon=True).start()\n"
        "database = sqlite3.connect('guilty.db')\n"
        "notes = open('notes', 'w')\n"
        "open('.env', 'a').close()\n"
    )
    noted, threads, descriptors = import_watched("guilty", tmp_path)
    assert {"socket.__new__", "sqlite3.connect", "open notes", "open .env"} <= set(noted)
    assert threads == ["MainThread", "guilty"]
    assert descriptors >= 2 or not Path("/proc/self/fd").exists()
