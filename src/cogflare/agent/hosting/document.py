"""The OpenAPI document of a model, as Cog's server has it: same paths, same names of components."""

from typing import Any

from .checking import Schema

_TEXT = {"type": "string"}


def document(given: Schema, output: Schema, components: dict[str, Schema], about: str = "") -> Schema:
    """Return the document of a model with these inputs and output; the components are what they refer to."""
    response: Schema = {
        "title": "PredictionResponse",
        "type": "object",
        "properties": {
            "input": _reference("Input"),
            "output": _reference("Output"),
            "id": _titled("Id"),
            "status": _titled("Status"),
            "error": _titled("Error"),
            "logs": _titled("Logs"),
            "metrics": {"title": "Metrics", "type": "object"},
        },
    }
    request: Schema = {
        "title": "PredictionRequest",
        "type": "object",
        "properties": {"id": _titled("Id"), "input": _reference("Input")},
    }
    info = {"title": "Cog", "version": "0.1.0"} | ({"description": about} if about else {})
    schemas = {"Input": given, "Output": {"title": "Output", **output}, **components}
    return {
        "openapi": "3.0.2",
        "info": info,
        "paths": _paths(),
        "components": {"schemas": {"PredictionRequest": request, "PredictionResponse": response, **schemas}},
    }


def _paths() -> dict[str, Any]:
    predict: Schema = {
        "summary": "Predict",
        "description": "Run a single prediction on the model",
        "operationId": "predict_predictions_post",
        "requestBody": {"content": {"application/json": {"schema": _reference("PredictionRequest")}}},
        "responses": _answers(_reference("PredictionResponse")),
        "x-cog-streaming": True,
    }
    name: Schema = {"required": True, "schema": _titled("Prediction Id"), "name": "prediction_id", "in": "path"}
    cancel: Schema = {
        "summary": "Cancel",
        "operationId": "cancel_predictions__prediction_id__cancel_post",
        "parameters": [name],
        "responses": _answers({}),
    }
    health: Schema = {
        "summary": "Healthcheck",
        "operationId": "healthcheck_health_check_get",
        "responses": _answers({}),
    }
    return {
        "/health-check": {"get": health},
        "/predictions": {"post": predict},
        "/predictions/{prediction_id}/cancel": {"post": cancel},
    }


def _answers(schema: Schema) -> Schema:
    return {"200": {"description": "Successful Response", "content": {"application/json": {"schema": schema}}}}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _titled(title: str) -> Schema:
    return {"title": title, **_TEXT}
