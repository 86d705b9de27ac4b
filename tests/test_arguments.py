"""What handlers take: payloads are examined when they are posted, and made what is annotated."""

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from job_scheduler import RunContext
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import Backend, assert_problem, finished, later, post, running, task_body


class Size(BaseModel):
    """A model of a user's."""

    width: int = Field(ge=1)
    height: int = 5


@dataclass
class Point:
    """A dataclass of a user's."""

    x: float


class Colour(Enum):
    """An enumeration of a user's."""

    Red = "red"


def faults(response: Any) -> dict[str, str]:
    """What a refused payload is blamed for."""
    problem = assert_problem(response, 422, "PAYLOAD_422")
    return {fault["field"]: fault["detail"] for fault in problem["errors"]}


GIVEN: dict[str, Any] = {
    "when": "2027-07-01T10:00:00Z",
    "day": "2027-07-01",
    "size": {"width": 3},
    "point": {"x": 1},
    "colour": "red",
    "amount": "12.50",
    "identity": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61",
    "pair": [1, "a"],
    "whatever": {"a": [None]},
}


@pytest.mark.parametrize("lane", ["plain", "async"])
def test_arguments_are_made_what_the_annotations_ask_for(
    store: Backend, registry: HandlerRegistry, lane: str
) -> None:
    found: dict[str, Any] = {}

    def plain(  # type: ignore[no-untyped-def]
        when: datetime,
        day: date,
        size: Size,
        point: Point,
        colour: Colour,
        amount: Decimal,
        identity: UUID,
        pair: tuple[int, str],
        whatever,
        context: RunContext,
        times: int = 7,
    ) -> None:
        found.update((name, value) for name, value in locals().items() if name != "found")

    async def asynchronous(context: RunContext, size: Size, **others: Any) -> None:
        found.update(size=size, context=context, **others)

    registry.task("probe")(plain if lane == "plain" else asynchronous)
    with running(store, registry) as client:
        task = post(client, name="probe", run_at=later(0), payload=GIVEN)
        assert finished(client, task["task_id"])["status"] == "done"
    assert found.pop("context").task_id == task["task_id"]
    if lane == "async":
        assert found == GIVEN | {"size": Size(width=3)}
        return
    assert found == {
        "when": datetime(2027, 7, 1, 10, tzinfo=UTC),
        "day": date(2027, 7, 1),
        "size": Size(width=3, height=5),
        "point": Point(1.0),
        "colour": Colour.Red,
        "amount": Decimal("12.50"),
        "identity": UUID(GIVEN["identity"]),
        "pair": (1, "a"),
        "whatever": {"a": [None]},
        "times": 7,
    }


@pytest.mark.parametrize(
    ("payload", "refused"),
    [
        (None, {"payload.number": "This argument is required."}),
        ({"number": "5"}, {"payload.number": "Input should be a valid integer."}),
        ({"number": True}, {"payload.number": "Input should be a valid integer."}),
        ({"number": 0}, {"payload.number": "Input should be greater than 0."}),
        (
            {"number": 1, "size": {"width": 0}, "numer": 2},
            {
                "payload.size.width": "Input should be greater than or equal to 1.",
                "payload.numer": "The handler takes no such argument. Remove it, or correct its "
                "name.",
            },
        ),
        ({"number": 1, "when": 1_700_000_000}, {"payload.when": "Input should be a valid"}),
    ],
)
def test_payload_that_does_not_fit_is_refused_when_it_is_posted(
    store: Backend,
    registry: HandlerRegistry,
    payload: dict[str, Any] | None,
    refused: dict[str, str],
) -> None:
    @registry.task("probe")
    def probe(
        number: Annotated[int, Field(gt=0)],
        size: Size | None = None,
        when: datetime | None = None,
    ) -> None: ...

    with running(store, registry) as client:
        found = faults(client.post("/tasks", json=task_body(payload=payload)))
        assert found.keys() == refused.keys()
        assert all(found[field].startswith(words) for field, words in refused.items())
        fits = task_body(payload={"number": 1})
        batch = {"tasks": [fits, task_body(payload=payload), fits]}
        found = faults(client.post("/tasks/batch", json=batch))
        assert found.keys() == {f"tasks.1.{field}" for field in refused}
    assert store.count() == 0


def test_row_that_does_not_fit_fails_and_says_why(
    store: Backend, registry: HandlerRegistry
) -> None:
    called = []

    @registry.task("probe")
    def probe(number: int) -> None:
        called.append(number)

    task_id = store.insert_task(run_at=later(-1), payload=json.dumps({"number": "many"}))
    with running(store, registry) as client:
        ended = finished(client, task_id)
    assert ended["status"] == "failed"
    assert ended["result"] == (
        "the payload does not fit the handler: payload.number: Input should be a valid integer."
    )
    assert called == []


def by_position(number: int, /) -> None:
    """Take what no payload can bring."""


def of_no_json(connection: socket.socket) -> None:
    """Take what no JSON can become."""


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (by_position, "takes 'number' by position alone"),
        (of_no_json, "cannot be made of JSON"),
    ],
)
def test_handler_that_no_payload_can_serve_is_refused_at_once(
    registry: HandlerRegistry, function: Callable[..., Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.task("probe")(function)
    assert registry.names() == []


def test_parameter_of_no_json_with_a_default_is_never_given(
    store: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe")
    def probe(number: int, *rest: int, connection: socket.socket | None = None) -> list[Any]:
        return [number, rest, connection]

    with running(store, registry) as client:
        task = post(client, name="probe", run_at=later(0), payload={"number": 1})
        assert finished(client, task["task_id"])["result"] == [1, [], None]
        refused = client.post("/tasks", json=task_body(payload={"number": 1, "connection": None}))
        assert faults(refused).keys() == {"payload.connection"}


# ----------------------------------------------------------------- as they are shown


def test_handlers_are_listed_with_what_they_take(store: Backend, registry: HandlerRegistry) -> None:
    class Unwritable:
        pass

    @registry.task("resize image")
    def resize(
        url: str,
        size: Size,
        tags: list[str],
        kind: Annotated[str, Field(examples=["jpeg"])] = "png",
        when: datetime | None = None,
        mode: Any = Unwritable,
    ) -> None:
        """Make an image smaller.

        And no larger.
        """

    @registry.task("picky")
    def picky(code: Annotated[str, Field(pattern="^[0-9]{5}$")]) -> None: ...

    with running(store, registry) as client:
        listed = {each["name"]: each for each in client.get("/handlers").json()}
        openapi = client.get("/openapi.json").json()
    assert list(listed) == ["picky", "resize image", "send_report"]
    shown = listed["resize image"]
    assert shown["description"] == "Make an image smaller.\n\nAnd no larger."
    properties = shown["payload"]["properties"]
    assert properties["kind"]["default"] == "png"
    assert properties["when"]["default"] is None
    assert "default" not in properties["mode"]
    assert shown["payload"]["required"] == ["url", "size", "tags"]
    assert shown["payload"]["additionalProperties"] is False
    assert shown["payload"]["$defs"]["Size"]["properties"]["width"]["minimum"] == 1
    assert shown["example"] == {
        "url": "text",
        "size": {"width": 1},
        "tags": ["text"],
        "kind": "png",
    }
    assert listed["picky"]["example"] is None  # rather none than one that is refused
    assert listed["send_report"]["example"] == {}

    schemas = openapi["components"]["schemas"]
    assert schemas["resize_image.payload"]["properties"]["size"] == {
        "$ref": "#/components/schemas/resize_image.Size"
    }
    assert schemas["resize_image.Size"]["properties"]["width"]["minimum"] == 1
    content = openapi["paths"]["/tasks"]["post"]["requestBody"]["content"]["application/json"]
    example = content["examples"]["resize image"]
    assert example["value"]["payload"] == shown["example"]
    assert example["description"] == shown["description"]
    assert "payload" not in content["examples"]["picky"]["value"]


def test_examples_that_are_shown_are_taken(store: Backend, registry: HandlerRegistry) -> None:
    @registry.task("probe")
    def probe(
        when: datetime,
        day: date,
        identity: UUID,
        size: Size,
        sizes: list[Size],
        colour: Colour,
        choice: Annotated[int | None, Field(ge=3)],
        ratio: float,
        sure: bool,
        nothing: None,
        names: dict[str, int],
        anything: Any,
        items: list,  # type: ignore[type-arg]
    ) -> None: ...

    with running(store, registry) as client:
        content = client.get("/openapi.json").json()["paths"]["/tasks"]["post"]["requestBody"][
            "content"
        ]["application/json"]
        assert set(content["examples"]) == {"probe", "send_report"}
        assert content["examples"]["probe"]["value"]["payload"].keys() >= {"when", "anything"}
        for example in content["examples"].values():
            assert client.post("/tasks", json=example["value"]).status_code == 201
