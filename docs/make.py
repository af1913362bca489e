"""Write the pages that are made from the code, docs/api.md and docs/configuration.md: `make docs`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from service import errors
from service.app import create_app
from service.settings import Settings

FOLDER = Path(__file__).parent
_FASTAPIS_OWN = "Successful Response"
_API_HEAD = """# HTTP API

Made from the OpenAPI document by `make docs`; a running service has it at `/openapi.json`, and at `/docs` to try it
(no browser can open that where keys are set). The examples are real answers of the bundled weights to the picture of
`frcnn sample`, with `max_detections=3`.

`/detect` in one line: `curl -F file=@photo.jpg 'http://127.0.0.1:8000/detect?score_threshold=0.5'`. With
[API keys](../SECURITY.md) set, requests carry one, or get a 401. Every error is a problem document, see
[Problem](#problem) and the [codes](#errors);
under `/v2` it is `{"error": "..."}`, see [Open Inference Protocol](#open-inference-protocol), and under `/v1/vision` it
has [DeepStack's form](#deepstacks-api). A browser gets a page for a 404 or 405. Boxes are in pixels of the upright
image: EXIF orientation is applied. Each answer has an `X-Request-ID`, which the caller may choose.

## Paths
"""
_PROTOCOLS = [FOLDER / "parts" / name for name in ("open-inference-protocol.md", "deepstack.md")]

_ERRORS_HEAD = """## Errors

A problem document has the code at the end of its `type`: `urn:faster-rcnn-service:queue-full`. The last column says
whether the same request may succeed when it is sent again.

| status | code | meaning | retry |
|---|---|---|---|"""
_CONFIGURATION_HEAD = """# Configuration

Made from the class `Settings` by `make docs`. Each setting is an option of `frcnn serve` and a variable of the
environment; the option wins. What is not set has its default. A misspelt variable is named in a warning at the start,
and a value out of range ends the start with exit code 2. [operations.md](operations.md) explains the limits.

| option | variable | default | value | meaning |
|---|---|---|---|---|"""


def pages() -> dict[Path, str]:
    """Each page with what it should hold."""
    return {FOLDER / "api.md": api_page(), FOLDER / "configuration.md": configuration_page()}


def configuration_page() -> str:
    """A table of all settings."""
    schemas = Settings.model_json_schema(by_alias=False)["properties"]
    lines = [_CONFIGURATION_HEAD]
    for name, field in Settings.model_fields.items():
        option = "" if field.annotation == SecretStr | None else _option(name, field.annotation is bool)
        schema = {key: value for key, value in schemas[name].items() if key != "default"}
        default = "" if field.default in (None, ()) else f"`{_in_words(field.default)}`"
        value = _value(schema).removesuffix(" or null").replace("array of string", "strings, separated by commas")
        lines.append(f"| {option} | `FRCNN_{name.upper()}` | {default} | {value} | {field.description} |")
    return "\n".join(lines) + "\n"


def _option(name: str, is_switch: bool) -> str:
    words = name.replace("_", "-")
    return f"`--{words}`, `--no-{words}`" if is_switch else f"`--{words}`"


def _in_words(default: object) -> str:
    """A default as a variable gives it."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def error_rows() -> list[tuple[int, str, str, str]]:
    """Status, code, meaning and retry of every problem, by status.

    The meanings are those of the tree at the head of service/errors.py.

    Raises:
        ValueError: the tree and the classes do not agree.
    """
    drawn = {
        name: (int(status), meaning)
        for name, status, meaning in re.findall(r"^\+- (\w+) +(\d{3})  (.+)$", errors.__doc__ or "", re.MULTILINE)
    }
    kinds = {kind.__name__: kind for kind in errors.ServiceError.__subclasses__() if kind.__module__ == errors.__name__}
    if {name: status for name, (status, _) in drawn.items()} != {name: kind.status for name, kind in kinds.items()}:
        raise ValueError("the tree at the head of service/errors.py and its classes differ")
    rows = [(int(kind.status), kind.code, drawn[name][1], kind.retry) for name, kind in kinds.items()]
    rows += [(status, code, meaning, "no") for status, (code, meaning) in errors.OTHER_CODES.items()]
    return sorted(rows, key=lambda row: row[0])


def api_page() -> str:
    """Every path, object and error."""
    # With a key, so that each path lists its 401, and with every path.
    document = create_app(Settings(api_keys=SecretStr("0" * 16), enable_reload=True)).openapi()
    lines = [_API_HEAD]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines.append("## Objects\n")
    for name, schema in document["components"]["schemas"].items():
        lines += _object(name, schema)
    lines.append(_ERRORS_HEAD)
    lines += [f"| {status} | `{code}` | {meaning} | {retry} |" for status, code, meaning, retry in error_rows()]
    for protocol in _PROTOCOLS:
        lines += ["", protocol.read_text(encoding="utf-8")]
    return "\n".join(lines).rstrip() + "\n"


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {title}\n"
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
    for status, answer in sorted(operation["responses"].items()):
        told = answer["description"].replace(_FASTAPIS_OWN, "")
        yield f"| {status} | {told} | {_bodies(answer)} |"
    yield ""


def _object(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
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
    elif "const" in schema:
        words = f"`{schema['const']}`"
    elif schema["type"] == "array":
        words = f"array of {_items(schema)}"
    else:
        words = schema["type"]
    if "maximum" in schema:
        words += f", {schema['minimum']} to {schema['maximum']}"
    elif "minimum" in schema:
        words += f", at least {schema['minimum']}"
    elif "exclusiveMinimum" in schema:
        words += f", more than {schema['exclusiveMinimum']}"
    if schema.get("default") not in (None, [], {}):
        words += f"; default `{json.dumps(schema['default'])}`"
    return words


def _items(schema: dict[str, Any]) -> str:
    item = schema["items"]
    if "prefixItems" in item:
        return f"{len(item['prefixItems'])} numbers each"
    return _value(item)


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
