"""The lock, the package and the containers are what the README says they are."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from job_scheduler.config import Settings

ROOT = Path(__file__).resolve().parent.parent
MARKER = "# --- tests and checks below; the image stops here ---\n"

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICE_RANGES = [Requirement(text) for text in PROJECT["dependencies"]]
TEST_RANGES = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]

SERVICE_PART, _, TESTS_PART = (ROOT / "requirements.txt").read_text().partition(MARKER)

PIN = re.compile(r"(?P<pin>[a-z0-9.-]+(\[[a-z]+\])?==[a-z0-9.]+( ; [^\\]+)?) \\")
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?")


def pins(part: str) -> dict[str, Requirement]:
    """The pinned packages of a part of the lock, by name."""
    found = [Requirement(match["pin"]) for match in PIN.finditer(part)]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def version(requirement: Requirement) -> str:
    """The one version that a pin admits."""
    (specifier,) = requirement.specifier
    return specifier.version


# ------------------------------------------------------------------------------- the lock


def test_lock_names_packages_and_hashes_and_no_place_they_come_from() -> None:
    for line in (SERVICE_PART + TESTS_PART).splitlines():
        if line.strip().startswith("#"):
            assert "/" not in line, "a comment names an address or a path"
        elif line:
            assert PIN.fullmatch(line) or HASH.fullmatch(line), line


@pytest.mark.parametrize("part", [SERVICE_PART, TESTS_PART], ids=["service", "tests"])
def test_every_pin_has_a_hash(part: str) -> None:
    lines = part.splitlines()
    after_pins = [lines[number + 1] for number, line in enumerate(lines) if PIN.fullmatch(line)]
    assert after_pins
    assert all(HASH.fullmatch(line) for line in after_pins)


def test_lock_says_how_it_is_made_anew() -> None:
    assert "make lock" in SERVICE_PART.partition("==")[0]


def test_service_part_has_all_that_the_service_needs_and_nothing_of_the_tests() -> None:
    service = pins(SERVICE_PART)
    assert {canonicalize_name(wanted.name) for wanted in SERVICE_RANGES} <= service.keys()
    assert not service.keys() & {canonicalize_name(wanted.name) for wanted in TEST_RANGES} - {
        "pyyaml"  # uvicorn[standard] reads log configurations with it
    }


def test_no_package_is_pinned_twice() -> None:
    assert not pins(SERVICE_PART).keys() & pins(TESTS_PART).keys()


@pytest.mark.parametrize("wanted", SERVICE_RANGES + TEST_RANGES, ids=lambda wanted: wanted.name)
def test_pin_lies_within_the_range_of_pyproject(wanted: Requirement) -> None:
    pinned = pins(SERVICE_PART + TESTS_PART)[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version(pinned))


@pytest.mark.parametrize("package", ["uvicorn[standard]", "coverage[toml]"])
def test_extra_is_pinned_with_its_package(package: str) -> None:
    """Pip 23 does not hold an extra to its package's pin: it asks for the newest, unhashed."""
    assert f"\n{package}==" in SERVICE_PART + TESTS_PART


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_make_and_the_image_cut_the_lock_at_the_marker(file: str) -> None:
    (script,) = re.findall(r"sed '(.+)' requirements\.txt", (ROOT / file).read_text())
    script = script.replace(r"\#", "#").replace("$$", "$")  # as make hands it to the shell
    cut = subprocess.run(
        ["/usr/bin/env", "sed", script, "requirements.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert cut.stdout == SERVICE_PART


# ---------------------------------------------------------------------------- the package


@pytest.mark.slow
def test_wheel_carries_the_package_with_its_migrations_and_pages_and_nothing_else(
    tmp_path: Path,
) -> None:
    pytest.importorskip("pip", reason="this environment was made without pip")
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]  # the backend is in the lock
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("job_scheduler_service-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        commands = archive.read(entry_points).decode()

    package = ROOT / "job_scheduler"
    files = {path for path in package.rglob("*") if path.is_file()}
    assert carried == {
        path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
    }
    assert any(name.startswith("job_scheduler/migrations/versions/") for name in carried)
    assert any(name.startswith("job_scheduler/web/static/") for name in carried)
    assert "job-scheduler = job_scheduler.cli:main" in commands


# ------------------------------------------------------------------------------- the image


def instructions() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each a list of (instruction, arguments)."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = []
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, arguments))
    return stages


def test_image_is_built_in_stages_on_one_base_and_installs_by_hash_in_the_first() -> None:
    first, last = instructions()
    assert first[0][1].split(" AS ")[0] == last[0][1] == "python:3.13-slim"
    assert any("--require-hashes" in arguments for name, arguments in first if name == "RUN")
    assert not any("pip" in arguments for name, arguments in last if name == "RUN")


def test_image_runs_as_nobody_who_may_much() -> None:
    (user,) = [arguments for name, arguments in instructions()[-1] if name == "USER"]
    assert int(user) > 0


def test_image_starts_uvicorn_without_a_shell_and_stops_it_by_sigterm() -> None:
    last = dict(instructions()[-1])
    assert json.loads(last["CMD"])[:2] == ["uvicorn", "job_scheduler.main:app"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "ENTRYPOINT" not in last


def test_image_checks_its_own_health() -> None:
    arguments = dict(instructions()[-1])["HEALTHCHECK"]
    program, option, code = json.loads(arguments.partition("CMD ")[2])
    assert (program, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/livez" in code


def test_only_what_the_image_copies_reaches_the_build() -> None:
    copied = {
        arguments.split(" ")[0]
        for stage in instructions()
        for name, arguments in stage
        if name == "COPY" and not arguments.startswith("--from=")
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


# ------------------------------------------------------------------------------ the compose


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of docker-compose.yml."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = compose["services"]
    return found


def test_app_waits_until_database_and_redis_are_healthy(services: dict[str, Any]) -> None:
    waits_for = services["app"]["depends_on"]
    assert waits_for == {name: {"condition": "service_healthy"} for name in ("db", "redis")}
    assert all("healthcheck" in services[name] for name in waits_for)


def test_app_uses_the_compose_services_and_migrates_by_itself(services: dict[str, Any]) -> None:
    environment = services["app"]["environment"]
    database = services["db"]["environment"]
    assert environment["DB_URL"] == (
        "postgresql+psycopg2://{POSTGRES_USER}:{POSTGRES_PASSWORD}@db:5432/{POSTGRES_DB}"
    ).format_map(database)
    assert environment["REDIS_URL"].startswith("redis://redis:")
    assert environment["AUTO_MIGRATE"] == "true"


def test_every_setting_reaches_the_app(services: dict[str, Any]) -> None:
    settings = {name.upper() for name in Settings.model_fields}
    assert services["app"]["environment"].keys() == settings


def test_running_tasks_may_finish_before_the_app_is_killed(services: dict[str, Any]) -> None:
    grace = int(services["app"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["shutdown_grace"].default


def test_app_is_reached_from_this_machine_only_and_can_be_scaled(services: dict[str, Any]) -> None:
    (port,) = services["app"]["ports"]
    assert port == "127.0.0.1:${PORT:-8000}:8000"
    assert "container_name" not in services["app"]


def test_database_survives_its_container(services: dict[str, Any]) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (volume,) = services["db"]["volumes"]
    assert volume.partition(":")[0] in compose["volumes"]
