"""The endpoint's page for people (`/docs`) and for language models (`llms.txt`), both written from the schema."""

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from server.openapi import JsonSchema, input_schema, output_schema
from server.schema import ENDPOINT

KINDS = {"number": "float"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field as a page shows it: values are text, None where there is nothing to say."""

    name: str
    kind: str
    required: bool
    description: str
    default: str | None
    span: tuple[str, str] | None
    options: tuple[str, ...]
    alternatives: str | None
    examples: tuple[str, ...]


class ModelPage:
    """The page, in its two forms."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=PackageLoader("server", "pages"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )

    def html(self, *, origin: str, openapi_url: str) -> str:
        """The page for people."""
        return self._render("docs.html", origin=origin, openapi_url=openapi_url)

    def llms(self, *, origin: str, openapi_url: str) -> str:
        """The page for language models."""
        return self._render("llms.txt", origin=origin, openapi_url=openapi_url)

    def _render(self, name: str, *, origin: str, openapi_url: str) -> str:
        given, made = input_schema(), output_schema()
        required = {name: given["properties"][name]["examples"][0] for name in given["required"]}
        return self._templates.get_template(name).render(
            endpoint=ENDPOINT,
            origin=origin,
            openapi_url=openapi_url,
            inputs=fields(given),
            outputs=fields(made),
            required_example=_indented(required),
            full_example=_indented(required | _defaults(given)),
            output_example=_indented(_example(made, made["$defs"])),
            prompt=required["prompt"],
            image_url=required["image_url"],
        )


def fields(schema: JsonSchema) -> list[Field]:
    """The fields of an object, in their order."""
    return [_field(name, of, required=name in schema["required"]) for name, of in schema["properties"].items()]


def _field(name: str, of: JsonSchema, *, required: bool) -> Field:
    branches = [branch for branch in of.get("anyOf", [of]) if branch.get("type") != "null"]
    kind = " | ".join(_kind(name, branch, alone=len(branches) == 1) for branch in branches)
    default = of.get("default")
    description = of["description"]
    # why: fal's page is silent about a default that is false or absent
    if default:
        description += f" Default value: `{_json(default) if len(branches) == 1 else default}`"
    return Field(
        name=name,
        kind=kind,
        required=required,
        description=description,
        default=None if default is None else _json(default),
        span=(_json(of["minimum"]), _json(of["maximum"])) if "minimum" in of else None,
        options=tuple(map(_json, of.get("enum", ()))),
        alternatives=kind if len(branches) > 1 else None,
        examples=tuple(map(_json, of.get("examples", ()))),
    )


def _kind(name: str, of: JsonSchema, *, alone: bool) -> str:
    if "$ref" in of:
        return str(of["$ref"].rpartition("/")[2])
    if "enum" in of:
        return "".join(part.title() for part in name.split("_")) + "Enum" if alone else "Enum"
    kind: str = of["type"]
    return KINDS.get(kind, kind)


def _defaults(schema: JsonSchema) -> dict[str, Any]:
    return {name: of["default"] for name, of in schema["properties"].items() if of.get("default")}


def _example(schema: JsonSchema, parts: dict[str, JsonSchema]) -> dict[str, Any]:
    """An object with an example of every field that has one, and empty strings for those that do not."""
    made: dict[str, Any] = {}
    for name, of in schema["properties"].items():
        if "$ref" in of:
            made[name] = _example(parts[of["$ref"].rpartition("/")[2]], parts)
        elif "examples" in of:
            made[name] = of["examples"][0]
        elif of.get("type") == "string":
            made[name] = ""
    return made


def _json(value: Any) -> str:
    """JSON as JavaScript writes it: 24, not 24.0."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _indented(value: dict[str, Any]) -> str:
    return json.dumps({key: _plain(entry) for key, entry in value.items()}, ensure_ascii=False, indent=2)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
