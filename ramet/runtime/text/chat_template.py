"""The model's own chat template: Jinja in an immutable sandbox, with the conventions that templates of the Hub rely on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ramet.errors import ConfigError, InvalidRequest, Unsupported
from ramet.program.backend import ChatFormat
from ramet.runtime.model_files import ModelFiles, read_json
from ramet.runtime.text.chat_borders import derive_chat_format
from ramet.runtime.text.tokenizer import HfTokenizer, tokenizer_directory

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})
END_MARK = "\ue000end of the last message\ue000"
"""Private-use text that stands for the place where a continued message ends."""
Templates = Mapping[str, str]


def load_chat_template(
    files: ModelFiles, tokenizer: HfTokenizer, override_path: str | None = None, *, cache_dir: Path | None = None
) -> JinjaChatTemplate | None:
    """The template of `override_path`, else the model's; None when the model brings none."""
    if override_path is not None:
        templates = _read_override(Path(override_path).expanduser())
    else:
        templates = _read_templates(tokenizer_directory(files, cache_dir=cache_dir))
    return JinjaChatTemplate(templates, tokenizer.special_tokens) if templates else None


class JinjaChatTemplate:
    """Implements the engine's `ChatTemplate`. `templates`: name → Jinja text; "default" is the usual one, "tool_use" the one for requests
    with tools, where there is one. `special_tokens`: bos_token, eos_token … as the templates see them."""

    def __init__(self, templates: Templates, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = _environment()
        self._special_tokens = dict(special_tokens or {})
        self._sources = dict(templates)
        try:
            self._templates = {name: environment.from_string(text) for name, text in templates.items()}
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is not valid Jinja: {error.message} (line {error.lineno})", param="chat_template"
            ) from error

    @property
    def source(self) -> str:
        return self._sources.get("default") or next(iter(self._sources.values()))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """`continue_final_message` leaves the last message's turn open and therefore adds no generation prompt."""
        if not messages:
            raise InvalidRequest("messages is empty", param="messages")
        plain = [_plain_message(message, index) for index, message in enumerate(messages)]
        if continue_final_message:
            plain[-1]["content"] = (plain[-1].get("content") or "") + END_MARK
        text = self._render(
            {
                **self._special_tokens,
                **_checked_variables(variables or {}),
                "messages": plain,
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
        )
        return _cut_at_mark(text) if continue_final_message else text

    def chat_format(self) -> ChatFormat:
        return self._chat_format

    @cached_property
    def _chat_format(self) -> ChatFormat:
        """Kept: it takes seventeen renderings, and every program with turns asks for it."""
        return derive_chat_format(self.render, self._special_tokens.get("bos_token", ""))

    def _render(self, variables: Mapping[str, Any]) -> str:
        name = "tool_use" if variables["tools"] and "tool_use" in self._templates else "default"
        template = self._templates.get(name) or next(iter(self._templates.values()))
        try:
            return template.render(variables)
        except _Refused as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", param="messages") from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InvalidRequest(f"the model's chat template cannot render these messages ({reason})", param="messages") from error


class _Refused(TemplateRuntimeError):
    """What a template's own `raise_exception(message)` raises."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's tokens for training; for serving it is its body."""

    tags = {"generation"}  # noqa: RUF012 - declared by jinja2 as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML and sorts keys; models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _checked_variables(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    taken = sorted(RESERVED & variables.keys())
    if taken:
        raise InvalidRequest(f"chat_template_kwargs may not set {', '.join(taken)}", param="chat_template_kwargs")
    return variables


def _plain_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Content as one text, arguments of tool calls as objects: what templates expect."""
    plain = dict(message)
    if not isinstance(plain.get("role"), str):
        raise InvalidRequest(f"messages[{index}] has no role", param=f"messages[{index}].role")
    content = plain.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        plain["content"] = "".join(_part_text(part, f"messages[{index}].content[{at}]") for at, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest(f"messages[{index}].content is neither text nor a list of parts", param=f"messages[{index}].content")
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_with_parsed_arguments(call) for call in plain["tool_calls"]]
    return plain


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        raise Unsupported(f"{where} is of type {kind!r}; this model reads text parts only", param=where)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} has no text", param=where)
    return text


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


def _cut_at_mark(text: str) -> str:
    before, mark, _ = text.rpartition(END_MARK)
    if not mark:
        raise InvalidRequest("the model's chat template drops the last message, so it cannot be continued", param="continue_final_message")
    return before


def _read_override(path: Path) -> Templates:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the chat template {path}: {error.strerror}; give the path of a Jinja file", param="chat_template"
        ) from error
    return _named(read_json(path).get("chat_template")) if path.suffix == ".json" else {"default": text}


def _read_templates(directory: Path) -> Templates:
    """Newest convention first: chat_template.jinja (more in additional_chat_templates/), chat_template.json, tokenizer_config.json."""
    more = {path.stem: path.read_text(encoding="utf-8") for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        return {"default": jinja.read_text(encoding="utf-8"), **more}
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _named(read_json(directory / name, missing_ok=True).get("chat_template"))
        if found:
            return found
    return more


def _named(value: Any) -> Templates:
    """One text, or a list of {name, template}."""
    if isinstance(value, str):
        return {"default": value}
    return {entry["name"]: entry["template"] for entry in value or ()}
