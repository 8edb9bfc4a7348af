"""Problem documents: Replicate's words, always one JSON object."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogflare.api import problems
from cogflare.domain.inputs import FieldProblem


def body(problem: problems.Problem) -> object:
    return json.loads(problem.body())


@pytest.mark.parametrize(
    ("problem", "document"),
    [
        (
            problems.unauthenticated(token_given=False),
            {"title": "Unauthenticated", "detail": "You did not pass an authentication token", "status": 401},
        ),
        (
            problems.unauthenticated(token_given=True),
            {"title": "Unauthenticated", "detail": "You did not pass a valid authentication token", "status": 401},
        ),
        (problems.not_found(), {"detail": "The requested resource could not be found.", "status": 404}),
        (problems.file_not_found(), {"detail": "File not found", "status": 404}),
        (problems.file_too_large(100_000_000), {"detail": "Files must be less than 100MB in size", "status": 413}),
        (
            problems.version_not_permitted(),
            {
                "title": "Invalid version or not permitted",
                "detail": "The specified version does not exist (or perhaps you don't have permission to use it?)",
                "status": 422,
            },
        ),
        (
            problems.throttled(29.2),
            {
                "detail": "Request was throttled. Your rate limit resets in ~30s.",
                "status": 429,
                "retry_after": 30,
            },
        ),
        (
            problems.invalid_input(
                [
                    FieldProblem("required", "input", "prompt is required"),
                    FieldProblem("number_lte", "input.num_inference_steps", "Must be less than or equal to 4"),
                ]
            ),
            {
                "detail": "- input: prompt is required\n- input.num_inference_steps: Must be less than or equal to 4\n",
                "status": 422,
                "title": "Input validation failed",
                "invalid_fields": [
                    {"type": "required", "field": "input", "description": "prompt is required"},
                    {
                        "type": "number_lte",
                        "field": "input.num_inference_steps",
                        "description": "Must be less than or equal to 4",
                    },
                ],
            },
        ),
    ],
)
def test_known_texts(problem: problems.Problem, document: object) -> None:
    assert body(problem) == document


def test_a_problem_of_the_whole_body_has_no_field_in_its_line() -> None:
    problem = problems.invalid_input([FieldProblem("required", "", "version is required")])
    assert problem.detail == "- version is required\n"


@pytest.mark.parametrize(
    ("problem", "status", "headers"),
    [
        (problems.throttled(0), 429, {"retry-after": "1"}),
        (problems.unavailable(5), 503, {"retry-after": "5"}),
        (problems.storage_full(), 507, {"x-should-retry": "false"}),
        (problems.conflict("The model exists."), 409, {"x-should-retry": "false"}),
        (problems.internal_error(), 500, {"x-should-retry": "false"}),
        (problems.insufficient_budget("The budget is spent."), 402, {"x-should-retry": "false"}),
        (problems.method_not_allowed("PUT", ["GET", "POST"]), 405, {"allow": "GET, POST"}),
        (problems.body_too_large(1_000_001), 413, {}),
        (problems.unsupported_media_type("text/csv", "application/json"), 415, {}),
        (problems.malformed_json("trailing characters (byte 9)"), 400, {}),
        (problems.bad_request("No."), 400, {}),
        (problems.forbidden(), 403, {}),
        (problems.invalid_cursor(), 404, {}),
    ],
)
def test_status_and_headers(problem: problems.Problem, status: int, headers: dict[str, str]) -> None:
    response = problem.response()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert headers.items() <= dict(response.headers).items()
    document = json.loads(bytes(response.body))
    assert document["status"] == status
    assert document["detail"]


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_renders_as_an_object(detail: str, field: str) -> None:
    assert isinstance(body(problems.bad_request(detail)), dict)
    assert isinstance(body(problems.invalid_input([FieldProblem("x", field, detail)])), dict)
    problems.unsupported_media_type(detail, "json").response()
