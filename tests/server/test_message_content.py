"""What a chat message must hold, and how a body that is wrong is answered."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.live_server import live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.waiting import PATIENCE

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def client() -> Any:
    with live_server(ScriptedEngine(), tool_call_parser="hermes") as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        yield client


def refusal(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json={"messages": [USER], **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}, {"role": "system"}, {"role": "tool"}])
def test_only_an_assistant_may_say_nothing(client: httpx.Client, message: dict[str, Any]) -> None:
    error = refusal(client, messages=[USER, message])
    assert error["param"] == "messages[1].content"
    assert "messages[1].content is missing" in error["message"]


@pytest.mark.parametrize("said", [{"content": ""}, {"content": None, "tool_calls": [CALL]}, {"tool_calls": [CALL]}])
def test_an_assistant_may_say_nothing(client: httpx.Client, said: dict[str, Any]) -> None:
    body = {"messages": [USER, {"role": "assistant", **said}, {"role": "user", "content": ""}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text


def test_every_unknown_field_is_named(client: httpx.Client) -> None:
    error = refusal(client, tempreature=0.5, echo=True)
    assert error == {
        "message": "fields that are not known: tempreature (did you mean temperature?), echo",
        "type": "invalid_request_error",
        "param": "tempreature",
        "code": "invalid_request",
    }
    nested = refusal(client, stream=True, stream_options={"include_usge": True})
    assert nested["message"] == "stream_options.include_usge: this field is not known; did you mean include_usage?"
    assert nested["param"] == "stream_options.include_usge"


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        ("/v1/chat/completions", {"messages": [USER], "max_token": 5}, "max_token: this field is not known; did you mean max_tokens?"),
        ("/v1/chat/completions", {"messages": [USER], "temprature": 0}, "temprature: this field is not known; did you mean temperature?"),
        (
            "/v1/chat/completions",
            {"messages": [USER], "max_new_tokens": 5},
            "max_new_tokens: this field is not known; use max_tokens",
        ),
        (
            "/v1/chat/completions",
            {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"name": "x", "shema": {}}}},
            "response_format.json_schema.shema: this field is not known; did you mean schema?",
        ),
        ("/v1/completions", {"prompt": "a", "max_completion_tokens": 5}, "; use max_tokens"),
        (
            "/v1/chat/completions",
            {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f"}, "parameters": {}}]},
            "tools[0].parameters: this field is not known; it belongs into function",
        ),
        (
            "/v1/chat/completions",
            {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]},
            "tools[0].function: 'paramters' is no field of a function; did you mean parameters?",
        ),
        ("/v1/chat/completions", {"messages": [USER], "include_usage": True}, "; it belongs into stream_options"),
        ("/v1/chat/completions", {"messages": "Hi"}, "messages: must be a list"),
        ("/v1/chat/completions", {"messages": [USER], "response_format": "json"}, "response_format: must be an object"),
        ("/v1/chat/completions", {"messages": [USER], "max_tokens": "many"}, "max_tokens: must be an integer"),
        ("/v1/chat/completions", {}, "messages: is missing"),
        ("/v1/completions", {"prompt": "a", "zzz": 5}, "zzz: this field is not known"),
        ("/generate", {"text": "a", "temperature": 0}, "temperature: this field is not known; use sampling_params.temperature"),
        ("/generate", {"text": "a", "max_tokens": 5}, "max_tokens: this field is not known; use sampling_params.max_new_tokens"),
        ("/v1/completions", {"prompt": "a", "messages": [USER]}, "messages: this field is not known; use prompt"),
        ("/v1/chat/completions", {"messages": [USER], "input": "a"}, "input: this field is not known; use messages"),
        (
            "/v1/responses",
            {"input": "a", "response_format": {}},
            "; use text.format on /v1/responses, sampling_params.json_schema on /generate",
        ),
        ("/generate", {"text": "a", "sampling_param": {}}, "did you mean sampling_params?"),
        ("/v1/programs/0/runs", {"argument": {}}, "argument: this field is not known; did you mean arguments?"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(client: httpx.Client, path: str, body: dict[str, Any], hint: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].endswith(hint)


@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("guided_json", {"type": "object"}, "response_format or json_schema"),
        ("guided_regex", "a+", "regex"),
        ("guided_choice", ["a", "b"], "regex"),
        ("structured_outputs", {"json": {}}, "response_format"),
    ],
)
def test_constraints_under_vllms_names_are_told_ours(client: httpx.Client, field: str, value: Any, instead: str) -> None:
    message = refusal(client, **{field: value})["message"]
    assert message.startswith(f"{field}: this field is not known; use ") and instead in message


@pytest.mark.parametrize(("field", "value"), [("stop", [1]), ("stop", {"a": 1}), ("stop_regex", 5)])
def test_a_field_of_two_types_names_both(client: httpx.Client, field: str, value: Any) -> None:
    error = refusal(client, **{field: value})
    assert error["param"] == field
    assert error["message"] == f"{field}: expected a string or a list of strings"


@pytest.mark.parametrize("body", [b"", b"[1, 2]", b"5", b"null"])
def test_a_body_that_is_no_object_says_what_it_must_be(client: httpx.Client, body: bytes) -> None:
    for path in ("/generate", "/v1/chat/completions"):
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "the body must be a JSON object with the fields that /docs lists"


def test_a_body_that_is_no_json_says_where(client: httpx.Client) -> None:
    response = client.post("/generate", content=b'{"text": bad}', headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, None)
    assert error["message"] == "the body is not JSON: Expecting value at character 9"
