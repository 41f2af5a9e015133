"""Stream to a terminal: the reply appears as it is generated, from sync code and from asyncio."""

from __future__ import annotations

import asyncio

from connect import connect

import ramet as sgl


@sgl.function
def tell(s, topic):
    s += sgl.user("Tell a very short story about " + topic)
    s += sgl.assistant(sgl.gen("story", max_tokens=64))


async def tell_two() -> None:
    """Two stories at the same time on one event loop."""

    async def print_story(topic: str) -> None:
        pieces = [piece async for piece in tell.astream(topic, var_name="story")]
        print(f"{topic} ({len(pieces)} pieces): {''.join(pieces)}")

    await asyncio.gather(print_story("a lighthouse"), print_story("a snail"))


def main() -> None:
    connect(__doc__)
    state = tell.run("a river", stream=True)
    for piece in state.text_iter("story"):
        print(piece, end="", flush=True)
    print(f"\n[{state.get_meta_info('story')['finish_reason']}]")
    asyncio.run(tell_two())


if __name__ == "__main__":
    main()
