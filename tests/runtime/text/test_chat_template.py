"""Rendering equals transformers' on templates of the common families; templates taken apart into borders say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from ramet.errors import ConfigError, InvalidRequest, Unsupported
from ramet.program.backend import ChatFormat, Conversation, Part
from ramet.runtime.model_files import ModelFiles, locate_model
from ramet.runtime.text.chat_template import JinjaChatTemplate, load_chat_template
from ramet.runtime.text.tokenizer import HfTokenizer, load_tokenizer

FOLDER = Path(__file__).with_name("templates")
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "<a> & 'b' → c", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": "é"}}}

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi there"}
ASSISTANT = {"role": "assistant", "content": "Hello!"}
MORE = {"role": "user", "content": "  spaced\ntext <b>&amp; "}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, MORE],
    [SYSTEM, USER, ASSISTANT, MORE],
    [USER, ASSISTANT],
    [USER, ASSISTANT, USER, ASSISTANT],
    [USER, USER],
    [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"}, USER],
]
WITH_TOOLS = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, ASSISTANT, USER]


def template(name: str) -> JinjaChatTemplate:
    return JinjaChatTemplate({"default": SOURCES[name]}, SPECIAL)


def oracle(name: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=SOURCES[name], **SPECIAL)


def theirs(name: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    from jinja2 import TemplateError

    try:
        return str(oracle(name).apply_chat_template(messages, tokenize=False, **options))
    except TemplateError:
        return None


def ours(name: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return template(name).render(messages, **options)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("prompt", [True, False])
def test_text_equals_transformers(name: str, prompt: bool) -> None:
    texts = [ours(name, messages, add_generation_prompt=prompt) for messages in CONVERSATIONS]
    assert texts == [theirs(name, messages, add_generation_prompt=prompt) for messages in CONVERSATIONS]
    assert sum(text is not None for text in texts) >= 5


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_tools_equal_transformers(name: str) -> None:
    text = ours(name, WITH_TOOLS, tools=TOOLS)
    assert text is not None and "<a> & 'b' → c" in text
    assert text == theirs(name, WITH_TOOLS, tools=TOOLS, add_generation_prompt=True)


def test_arguments_of_tool_calls_may_be_text() -> None:
    as_text = {"type": "function", "function": {"name": "add", "arguments": json.dumps(CALL["function"]["arguments"])}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [as_text]}]
    wanted = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert template("llama3").render(messages) == template("llama3").render(wanted)


def test_variables_reach_the_template() -> None:
    assert template("qwen3").render([USER], variables={"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")
    with pytest.raises(InvalidRequest, match="messages"):
        template("qwen3").render([USER], variables={"messages": []})


@pytest.mark.parametrize("name", ["chatml", "smollm2", "llama3", "mistral", "gemma"])
def test_a_continued_message_ends_the_text(name: str) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is"}]
    text = template(name).render(messages, continue_final_message=True)
    assert text == theirs(name, messages, continue_final_message=True)
    assert text.endswith("The answer is")


def test_a_continued_message_keeps_its_last_space() -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is "}]
    assert template("llama3").render(messages, continue_final_message=True).endswith("answer is ")


def test_content_parts() -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    assert template("chatml").render([{"role": "user", "content": parts}]) == template("chatml").render([USER])
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(Unsupported, match=r"messages\[0\].content\[1\] is of type 'image_url'"):
        template("chatml").render([{"role": "user", "content": [parts[0], image]}])


def test_a_refusal_is_the_templates_own_message() -> None:
    with pytest.raises(InvalidRequest, match="System role not supported"):
        template("gemma").render([SYSTEM, USER])


@pytest.mark.parametrize(
    "text", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ messages[9].content.x.y }}", "{{ 1 + 'a' }}"]
)
def test_the_sandbox_refuses_and_failures_are_the_requests(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot render"):
        JinjaChatTemplate({"default": text}).render([USER])


def test_broken_jinja_names_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        JinjaChatTemplate({"default": "a\n{% if %}"})


def test_named_templates() -> None:
    both = JinjaChatTemplate({"default": "plain", "tool_use": "with tools"})
    assert both.render([USER]) == "plain"
    assert both.render([USER], tools=TOOLS) == "with tools"


def conversation(messages: list[dict[str, Any]]) -> Conversation:
    parts = [
        part
        for message in messages
        for part in (Part("begin", message["role"]), Part("text", message["content"]), Part("end", message["role"]))
    ]
    return Conversation((*parts, Part("begin", "assistant")))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("chatml", {"system", "user", "assistant", "tool"}),
        ("smollm2", {"system", "user", "assistant", "tool"}),
        ("llama3", {"system", "user", "assistant", "tool"}),
        ("mistral", {"user", "assistant"}),
        ("gemma", {"user", "assistant"}),
        ("qwen3", {"system", "user", "assistant"}),
    ],
)
def test_borders_say_what_the_template_says(name: str, roles: set[str]) -> None:
    chat = template(name).chat_format()
    assert roles <= set(chat.borders)
    dialogue = [{"role": "user" if index % 2 == 0 else "assistant", "content": f"text {index}"} for index in range(9)]
    for messages in ([dialogue[0]], dialogue[:3], dialogue, [SYSTEM, *dialogue[:5]]):
        if messages[0]["role"] in chat.borders:
            assert chat.bos + conversation(messages).render(chat) == template(name).render(messages)


def test_a_default_system_turn_is_found() -> None:
    chat = template("smollm2").chat_format()
    assert chat.default_system == "<|im_start|>system\nYou help.<|im_end|>\n"
    assert chat.borders["system"] == ("<|im_start|>system\n", "<|im_end|>\n")
    assert template("llama3").chat_format().default_system.startswith("<|start_header_id|>system<|end_header_id|>\n\nCutting")


def test_bos_is_apart_unless_it_opens_every_turn() -> None:
    assert template("llama3").chat_format().bos == "<s>"
    opening = JinjaChatTemplate({"default": SOURCES["chatml"]}, {"bos_token": "<|im_start|>"}).chat_format()
    assert opening == ChatFormat(template("chatml").chat_format().borders)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (SOURCES["mistral_v1"], "generation prompt"),  # history has a space that the generation prompt has not
        ("{% for m in messages %}{{ m.content | upper }};{% endfor %}", "changes its texts"),
        ("{{ raise_exception('no') }}", "refuses"),
        ("{% for m in messages %}{{ loop.index0 }}{{ m.content }};{% endfor %}", "turn"),
    ],
)
def test_templates_that_cannot_be_taken_apart_say_so(source: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        JinjaChatTemplate({"default": source}, SPECIAL).chat_format()


def files_with(directory: Path, contents: dict[str, str]) -> ModelFiles:
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
    return ModelFiles("huggingface", directory, "test")


def word_tokenizer() -> HfTokenizer:
    return HfTokenizer(Tokenizer(WordLevel({"a": 0}, unk_token="a")), SPECIAL, {})


def test_where_templates_are_found(tmp_path: Path) -> None:
    files, tokenizer = files_with(tmp_path, {}), word_tokenizer()
    assert load_chat_template(files, tokenizer) is None
    found = []
    for name, content in [
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": "config {{ bos_token }}"}]})),
        ("chat_template.json", json.dumps({"chat_template": "json"})),
        ("chat_template.jinja", "jinja"),
    ]:
        loaded = load_chat_template(files_with(tmp_path, {name: content}), tokenizer)
        assert loaded is not None
        found.append(loaded.render([USER]))
    assert found == ["config <s>", "json", "jinja"]
    own = tmp_path / "own.txt"
    own.write_text("mine")
    override = load_chat_template(files, tokenizer, str(own))
    assert override is not None and override.render([USER]) == "mine"
    with pytest.raises(ConfigError, match="missing"):
        load_chat_template(files, tokenizer, str(tmp_path / "missing"))


@pytest.mark.model
def test_the_embedded_model(tmp_path: Path) -> None:
    files = locate_model(None)
    loaded = load_chat_template(files, load_tokenizer(files, cache_dir=tmp_path), cache_dir=tmp_path)
    assert loaded is not None
    chat = loaded.chat_format()
    assert "SmolLM" in chat.default_system
    assert conversation([USER]).render(chat) == loaded.render([USER])
