"""A chat of several turns in the ambient style. Type in a terminal; piped input (one turn a line) works too."""

from __future__ import annotations

import sys

from connect import connect

import ramet as sgl


@sgl.host
def next_line() -> str:
    print("you: ", end="", flush=True)
    return sys.stdin.readline().strip()


@sgl.function
def chat():
    history = sgl.system("You are a friendly assistant. Keep answers short.")
    while question := next_line():
        history += sgl.user(question)
        reply = sgl.assistant(sgl.gen(max_tokens=64))
        print("assistant:", reply)
        history += reply
    return history


def main() -> None:
    connect(__doc__)
    turns = len(chat.run().messages())
    print(f"\n({turns} messages)")


if __name__ == "__main__":
    main()
