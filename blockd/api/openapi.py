"""The OpenAPI 3.1 document, from the routes and from the models that check requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from blockd import __version__
from blockd.api.answers import Problem
from blockd.api.routes import Route

_REFERENCE: Final = "#/components/schemas/{model}"


def document(prefixes: Mapping[str, Iterable[Route]]) -> dict[str, Any]:
    """The document as plain values.

    Args:
        prefixes: a prefix, `{zone}` included, with the routes below it.
    """
    by_prefix = {prefix: list(routes) for prefix, routes in prefixes.items()}
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "validation"): None}
    for routes in by_prefix.values():
        for route in routes:
            for model in (route.body, route.answer):
                if model is not None:
                    models[model, "validation"] = None
    references, definitions = models_json_schema(list(models), ref_template=_REFERENCE)

    def reference(model: type[BaseModel]) -> dict[str, Any]:
        return references[model, "validation"]

    paths: dict[str, dict[str, Any]] = {}
    for prefix, routes in by_prefix.items():
        for route in routes:
            operations = paths.setdefault(prefix + route.path, {})
            operations[route.method.lower()] = _operation(prefix, route, reference)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "blockd",
            "version": __version__,
            "description": "Volumes and snapshots of one host.",
        },
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }


def _operation(prefix: str, route: Route, reference: Any) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(name)}
        for name in re.findall(r"{(\w+)}", prefix + route.path)
    ]
    if route.query is not None:
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in route.query.model_json_schema()["properties"].items()
        ]
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in route.headers
    ]
    if route.method == "POST":
        schema = {"type": "string", "minLength": 1, "maxLength": 255}
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": schema})
    operation: dict[str, Any] = {
        "operationId": _operation_id(prefix, route),
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "default": {"description": "An error", "content": _json(reference(Problem))},
        },
    }
    if route.answer is None:
        operation["responses"]["204"] = {"description": "Done"}
    else:
        content = {route.media_type: {"schema": reference(route.answer)}}
        operation["responses"]["200"] = {"description": "Done", "content": content}
    if route.body is not None:
        required = bool(route.body.model_fields)
        operation["requestBody"] = {"required": required, "content": _json(reference(route.body))}
    return operation


def _path_schema(name: str) -> dict[str, str]:
    return {"type": "string"} if name == "zone" else {"type": "string", "format": "uuid"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation_id(prefix: str, route: Route) -> str:
    words = re.findall(r"[a-z0-9_]+", f"{route.method.lower()}{prefix}{route.path}".lower())
    return "_".join(word for word in words if word not in {"zones", "zone"})
