"""What stands in the query of a request is taken as it is meant, or refused."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from job_scheduler.main import create_app
from tests.support.app import Backend, assert_problem, post, running, shown, task_body

FUTURE = "2031-07-01T12:00:00Z"
# Whoever watches over the service may add what keeps answers out of caches.
FREE = {"GET /health", "GET /livez", "GET /healthz", "GET /readyz", "GET /metrics"}


def _parameters() -> dict[str, dict[str, bool]]:
    """The parameters of each route, and whether they may be repeated."""
    return {
        f"{method.upper()} {path}": {
            each["name"]: each["schema"].get("type") == "array"
            for each in operation.get("parameters", [])
            if each["in"] == "query"
        }
        for path, methods in create_app().openapi()["paths"].items()
        for method, operation in methods.items()
    }


PARAMETERS = _parameters()
STRICT = sorted(PARAMETERS.keys() - FREE)
SINGLE = {
    "DELETE /tasks": {"limit", "cursor", "dry_run"},
    "GET /forecast": {"hours", "intervals"},
    "GET /tasks": {"limit", "cursor", "sort"},
    "GET /tasks/{task_id}/next": {"n"},
    "GET /tasks/{task_id}/runs": {"limit"},
    "PATCH /tasks": {"limit", "cursor", "dry_run"},
    "POST /tasks/batch": {"partial"},
    "POST /tasks/import": {"dry_run"},
    "POST /tasks/preview": {"n"},
}


@pytest.fixture
def client(store: Backend) -> Any:
    """A client of the service."""
    with running(store) as client:
        yield client


def answer(client: TestClient, route: str, query: str) -> Any:
    """Ask a route, for a task that is there."""
    method, _, path = route.partition(" ")
    task_id = post(client, run_at=FUTURE)["task_id"]
    body = task_body() if method in ("POST", "PATCH") else None
    before = shown(client, task_id)
    response = client.request(method, f"{path.format(task_id=task_id)}?{query}", json=body)
    assert shown(client, task_id) == before
    return response


def faults(response: Any) -> list[tuple[str, str]]:
    """What is said of each parameter."""
    errors = assert_problem(response, 422, "VALIDATION_422")["errors"]
    assert {error["location"] for error in errors} == {"query"}
    return [(error["field"], error["detail"]) for error in errors]


@pytest.mark.parametrize("route", STRICT)
def test_parameter_that_a_route_does_not_have_is_refused(client: TestClient, route: str) -> None:
    [(field, detail), (other, _)] = faults(answer(client, route, "odd=1&name_=&odd=2"))
    assert (field, other) == ("odd", "name_")
    known = PARAMETERS[route]
    assert "There is no such field here" in detail
    assert all(name in detail for name in known)


@pytest.mark.parametrize("route", STRICT)
def test_parameter_of_one_value_is_not_given_twice(client: TestClient, route: str) -> None:
    single = [name for name, is_list in PARAMETERS[route].items() if not is_list]
    assert set(single) >= SINGLE.get(route, set())
    for name in single:
        [(field, detail)] = faults(answer(client, route, f"{name}=1&{name}=1"))
        assert (field, detail) == (name, f"{name} is given 2 times. Keep one of them.")


SEVERAL = [route for route, known in PARAMETERS.items() if any(known.values())]


@pytest.mark.parametrize("route", SEVERAL)
def test_parameter_of_several_values_may_be(client: TestClient, route: str) -> None:
    several = [name for name, is_list in PARAMETERS[route].items() if is_list]
    assert several
    for name in several:
        # Refused as it is no status, or no id; and nothing is changed.
        values = "&".join(f"{name}={value}" for value in ("x" * 256, "y" * 256))
        for field, detail in faults(answer(client, route, values)):
            assert field.partition(".")[0] == name
            assert "2 times" not in detail


@pytest.mark.parametrize("route", sorted(FREE))
def test_whoever_watches_over_the_service_may_send_any(client: TestClient, route: str) -> None:
    assert client.get(f"{route.removeprefix('GET ')}?now=1&now=2").status_code == 200
