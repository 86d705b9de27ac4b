"""What a handler takes: the shape of its payload, read from the function's own annotations."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from job_scheduler import strict_json
from job_scheduler.core.handlers.example import example
from job_scheduler.exceptions import Fault

# A type checker wants the members to be written out.
_typed_dict: Any = TypedDict
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_REMEDIES = {
    "missing": "This argument is required.",
    "extra_forbidden": "The handler takes no such argument. Remove it, or correct its name.",
}


class Arguments:
    """The arguments of one handler, as members of a payload.

    JSON's types are not taken for one another (true or "5" for a number), unless a model of the
    user's own does. What is not annotated may be anything; ``**kwargs`` takes members of any
    further name. A parameter of a kind that JSON cannot bring (a connection, say) must have a
    default, and is never given.

    Raises:
        ValueError: a parameter can be passed neither by name nor from JSON.
    """

    def __init__(self, name: str, function: Callable[..., Any], context: str | None) -> None:
        own = [each for each in parameters(function) if each.name != context]
        kinds = {each.kind for each in own}
        self._defaults: dict[str, Any] = {}
        members: dict[str, Any] = {}
        for parameter in own:
            required = parameter.default is parameter.empty
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and required:
                raise ValueError(
                    f"the handler of {name!r} takes {parameter.name!r} by position alone; the "
                    "members of a payload are passed by name"
                )
            if parameter.kind not in _BY_NAME:
                continue
            annotation = _annotation(parameter)
            if not _comes_from_json(annotation):
                if required:
                    raise ValueError(
                        f"the handler of {name!r} takes {parameter.name!r}, a {annotation!r}: that "
                        "cannot be made of JSON. Annotate it with something that pydantic knows, "
                        "or give it a default"
                    )
                continue
            members[parameter.name] = annotation if required else NotRequired[annotation]
            if not required:
                self._defaults[parameter.name] = parameter.default
        extra: Any = "allow" if inspect.Parameter.VAR_KEYWORD in kinds else "forbid"
        config = with_config(extra=extra, strict=True, title=f"Payload of {name}")
        shape = config(_typed_dict("_", members))
        self._adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(shape)

    def parse(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments for a call; what the payload leaves out keeps its default.

        Raises:
            ValidationError: the payload does not fit.
        """
        # From text: strict about JSON's own types, while a time is still written as a string.
        return self._adapter.validate_json(strict_json.dumps(payload))

    def faults(self, payload: Mapping[str, Any]) -> list[Fault]:
        """Return what does not fit in a payload, with the remedy."""
        try:
            self.parse(payload)
        except ValidationError as error:
            return [
                Fault(
                    "body",
                    ".".join(("payload", *map(str, details["loc"]))),
                    _REMEDIES.get(details["type"], f"{details['msg'].rstrip('.')}."),
                )
                for details in error.errors(include_url=False, include_context=False)
            ]
        return []

    def schema(self, ref_template: str = "#/$defs/{model}") -> dict[str, Any]:
        """Return the payload's JSON Schema; `ref_template` tells where its parts will stand."""
        schema = self._adapter.json_schema(ref_template=ref_template)
        for member, default in self._defaults.items():
            try:
                schema["properties"][member]["default"] = to_jsonable_python(default)
            except ValueError:
                continue  # It has no JSON form; that it need not be given stands there anyway.
        return schema

    def example(self) -> dict[str, Any] | None:
        """Return a payload that fits, to begin with; None where it would have to be guessed."""
        payload: dict[str, Any] = example(self.schema())
        return None if self.faults(payload) else payload


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return what a function takes, its annotations evaluated as far as they can be."""
    try:
        return list(_signature(function).parameters.values())
    except (TypeError, ValueError):
        # Some that are written in C have none: they may take anything.
        return [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:
        # An annotation that only a type checker can read; those as they are written will do.
        return inspect.signature(function)


def _annotation(parameter: inspect.Parameter) -> Any:
    known = parameter.annotation is not parameter.empty
    return parameter.annotation if known and not isinstance(parameter.annotation, str) else Any


def _comes_from_json(annotation: Any) -> bool:
    try:
        TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return False
    return True
