"""What each peer is run by: our own Python, a virtual environment, or a folder of Node's.

They are made once under `.bench/`, and made anew when the packages that are wanted change.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.catalogue import Peer

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench"
PROGRAMS = Path(__file__).resolve().parent / "peers"
INSTALL_SECONDS = 600


class CannotInstall(Exception):
    """The peer cannot be had here; the text says why."""


@dataclass(frozen=True)
class Environment:
    """How to start a peer's program, and the version that it shows."""

    command: tuple[str, ...]
    version: str


def prepare(peer: Peer) -> Environment:
    """Install what the peer needs, unless that is done already.

    Raises:
        CannotInstall: it cannot be installed.
    """
    if not peer.packages:
        module = f"benchmarks.peers.{Path(peer.program).stem}"
        shown = f"{peer.version} {version(peer.version)}" if peer.version else _own_version()
        return Environment((sys.executable, "-m", module), shown)
    return _node(peer) if peer.node else _python(peer)


def _own_version() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "this checkout"


def _python(peer: Peer) -> Environment:
    home = HOME / (peer.home or peer.key)
    python = home / "bin" / "python"
    if not _is_made(home, peer):
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)])
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        _run([*pip, *peer.packages])
        _mark(home, peer)
    shown = peer.version or _name(peer.packages[0])
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    number = _run([str(python), "-c", code, shown]).strip()
    module = f"benchmarks.peers.{Path(peer.program).stem}"
    return Environment((str(python), "-m", module), f"{shown} {number}")


def _node(peer: Peer) -> Environment:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise CannotInstall("node and npm are not installed")
    home = HOME / (peer.home or peer.key)
    if not _is_made(home, peer):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true, "type": "module"}\n')
        _run([npm, "install", "--silent", "--no-audit", "--no-fund", *peer.packages], home)
        _mark(home, peer)
    # A module is looked for beside the file that imports it: so the programs are copied there.
    for program in (peer.program, "kit.mjs"):
        shutil.copy(PROGRAMS / program, home / program)
    name = _name(peer.packages[0])
    number = json.loads((home / "node_modules" / name / "package.json").read_text())["version"]
    return Environment((node, str(home / peer.program)), f"{name} {number}")


def _name(requirement: str) -> str:
    for sign in "[=@<>~":
        requirement = requirement.partition(sign)[0]
    return requirement


def _is_made(home: Path, peer: Peer) -> bool:
    mark = home / "packages.txt"
    return mark.exists() and mark.read_text() == "\n".join(peer.packages)


def _mark(home: Path, peer: Peer) -> None:
    (home / "packages.txt").write_text("\n".join(peer.packages))


def _run(command: list[str], directory: Path = ROOT) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (pip and npm, with arguments of our own)
            command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{command[0]} took too long") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise CannotInstall(" ".join(words[-3:])[:300])
    return done.stdout
