"""Write docs/api.md from the service's OpenAPI document: `make api`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

PAGE = Path(__file__).parent / "api.md"
_FASTAPIS_OWN = "Successful Response"
_HEAD = """# HTTP API

Made from the OpenAPI document by `make api`; a running service has it at `/openapi.json`, and at `/docs` to try it. The
examples are real answers of the bundled weights to the picture of `frcnn sample`.

`/detect` in one line: `curl -F file=@photo.jpg 'http://127.0.0.1:8000/detect?score_threshold=0.5'`. With
[API keys](../SECURITY.md) set, requests carry one. Every refusal is a problem document, see [Problem](#problem); under
`/v2` it is `{"error": "..."}`, and [protocols.md](protocols.md) tells of the tensors there.
"""


def page() -> str:
    document = create_app(Settings()).openapi()
    lines = [_HEAD]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines.append("# Objects\n")
    for name, schema in document["components"]["schemas"].items():
        lines += _object(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    if "description" in operation:
        yield operation["description"] + "\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | value | |\n|---|---|---|---|"
        for parameter in parameters:
            schema = parameter["schema"]
            told = parameter.get("description", "")
            yield f"| `{parameter['name']}` | {parameter['in']} | {_value(schema)} | {told} |"
        yield ""
    if "requestBody" in operation:
        kinds = [f"`{kind}`{_fields(told['schema'])}" for kind, told in operation["requestBody"]["content"].items()]
        yield f"Body: {', '.join(kinds)}.\n"
    yield "| status | | body |\n|---|---|---|"
    for status, answer in operation["responses"].items():
        told = answer["description"].replace(_FASTAPIS_OWN, "")
        yield f"| {status} | {told} | {_bodies(answer)} |"
    yield ""


def _object(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}\n"
    if "description" in schema:
        yield schema["description"] + "\n"
    yield "| field | value |\n|---|---|"
    for field, value in schema["properties"].items():
        yield f"| `{field}` | {_value(value)} |"
    yield ""
    for example in schema.get("examples", ()):
        yield f"```json\n{_compact({field: example[field] for field in schema['properties']})}\n```\n"


def _compact(example: dict[str, Any]) -> str:
    fields = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in example.items())
    return "{\n" + ",\n".join(fields) + "\n}"


def _fields(schema: dict[str, Any]) -> str:
    """The fields of a form or a JSON body."""
    names = [f"`{name}`" for name in schema.get("properties", ())]
    return f" with {', '.join(names)}" if names else ""


def _bodies(answer: dict[str, Any]) -> str:
    kinds = answer.get("content", {})
    return ", ".join(
        _value(told["schema"]) if "$ref" in told["schema"] else f"`{kind}`" for kind, told in kinds.items()
    )


def _value(schema: dict[str, Any]) -> str:
    """A schema in a few words: its type, bounds and default."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_value(one) for one in schema["anyOf"])
    if "enum" in schema:
        words = ", ".join(f"`{one}`" for one in schema["enum"])
    elif schema["type"] == "array":
        words = f"array of {_items(schema)}"
    else:
        words = schema["type"]
    if "minimum" in schema:
        words += f", {schema['minimum']} to {schema['maximum']}"
    if schema.get("default") not in (None, [], {}):
        words += f"; default `{json.dumps(schema['default'])}`"
    return words


def _items(schema: dict[str, Any]) -> str:
    item = schema["items"]
    if "prefixItems" in item:
        return f"{len(item['prefixItems'])} numbers each"
    return _value(item)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
