"""Two programs: a chat in the ambient style, and a JSON object that a regular expression holds in shape."""

from __future__ import annotations

import json
import time

from connect import connect

import ramet as sgl


@sgl.function  # ambient conversation: no state parameter
def multi_turn_conversation(user_input):
    history = sgl.user("Welcome to the assistant.")
    history += sgl.assistant("Hello! How can I help you?")
    history += sgl.user(user_input)
    response = sgl.assistant()  # no content: generate the next assistant turn
    return response


PERSON = r'\{ ?"name": ?"[^"\\]+", ?"age": ?[0-9]+ ?\}'


@sgl.function  # explicit state
def make_person(s, place):
    s += sgl.user(f"Invent a person from {place}. Answer as JSON with name and age.")
    s += sgl.assistant(sgl.gen("person", regex=PERSON, max_tokens=48))
    return s["person"]


def report(state: sgl.ProgramState, name: str, seconds: float) -> None:
    meta = state.get_meta_info(name)
    tokens, cached, prompt = (meta[key] for key in ("completion_tokens", "cached_tokens", "prompt_tokens"))
    print(f"[{tokens} tokens, {tokens / seconds:.1f} tokens/s; {cached} of {prompt} prompt tokens cached]\n")


def main() -> None:
    connect(__doc__)
    ret = multi_turn_conversation.run(user_input="Tell me about AI safety.")
    print(ret.text())
    print("The reply alone:", ret.value, "\n")
    for place in ("Iceland", "Iceland", "Peru"):
        began = time.perf_counter()
        state = make_person.run(place, temperature=0)
        print(state.text())
        report(state, "person", time.perf_counter() - began)
        if state.get_meta_info("person")["finish_reason"]["type"] == "stop":
            print("parsed:", json.loads(state["person"], strict=False), "\n")


if __name__ == "__main__":
    main()
