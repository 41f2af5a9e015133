"""The parsers by the names of their launch flags."""

from __future__ import annotations

from ramet.errors import InvalidRequest
from ramet.server.parsers.deepseek import DeepSeekFormat
from ramet.server.parsers.hermes import HermesFormat
from ramet.server.parsers.llama3 import Llama3Format
from ramet.server.parsers.mistral import MistralFormat
from ramet.server.parsers.pythonic import PythonicFormat
from ramet.server.parsers.think_tags import ThinkTags
from ramet.server.parsers.tool_format import ToolFormat


def tool_format(name: str) -> ToolFormat:
    """A value of --tool-call-parser other than auto and none."""
    match name:
        case "hermes" | "qwen" | "qwen25":
            return HermesFormat()
        case "llama3":
            return Llama3Format()
        case "mistral":
            return MistralFormat()
        case "deepseekv3":
            return DeepSeekFormat()
        case "pythonic":
            return PythonicFormat()
    known = "deepseekv3, hermes, llama3, mistral, pythonic, qwen, qwen25"
    raise InvalidRequest(f"tool_call_parser: {name!r} is not one of {known}", param="tool_call_parser")


def think_tags(name: str) -> ThinkTags:
    """A value of --reasoning-parser other than auto and none."""
    match name:
        case "think" | "qwen3" | "glm45":
            return ThinkTags(name)
        case "deepseek-r1" | "qwen3-thinking":
            return ThinkTags(name, implied=True)
        case "kimi":
            return ThinkTags(name, "◁think▷", "◁/think▷")
    known = "deepseek-r1, glm45, kimi, qwen3, qwen3-thinking, think"
    raise InvalidRequest(f"reasoning_parser: {name!r} is not one of {known}", param="reasoning_parser")
