"""An example for a JSON Schema, so that nobody begins with an empty page."""

from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = {"integer": 1, "number": 1.5, "boolean": True, "null": None}
_TEXTS = {
    "date-time": "2027-07-01T10:00:00Z",
    "date": "2027-07-01",
    "time": "10:00:00",
    "uuid": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61",
    "uri": "https://example.com/",
    "email": "somebody@example.com",
}


def example(schema: Mapping[str, Any]) -> Any:
    """Return a value of the kind that a JSON Schema describes; bounds may leave it unfit."""
    return _example(schema, schema.get("$defs", {}))


def _example(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _example(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for key in ("default", "const", "minimum"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _example(schema[key][0], definitions)
    return _of_type(schema, definitions)


def _of_type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    match schema.get("type"):
        case "object":
            return dict(_members(schema, definitions))
        case "array":
            return [_example(schema["items"], definitions)] if schema.get("items") else []
        case "string":
            return _TEXTS.get(schema.get("format", ""), "text")
        case kind:
            return _PLAIN.get(kind or "", "anything")


def _members(
    schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield what an object needs; of its optional members only those that say what they are."""
    required = schema.get("required", ())
    for name, member in schema.get("properties", {}).items():
        if name in required or "examples" in member:
            yield name, _example(member, definitions)
