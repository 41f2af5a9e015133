"""Token ids → text while they arrive: whole characters only, and in the end exactly `decode` of all ids."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """One stream of tokens. A step costs what its new tokens cost, however long the stream is.

    `token_bytes`: the bytes of every id (`Tokenizer.token_bytes`; ids past its end are padding of the logits and add nothing).
    `strip_first_space`: the stream is a whole text of a SentencePiece model, whose first space is not the text's. A generation is
    the continuation of a prompt and keeps it.
    """

    def __init__(self, token_bytes: Sequence[bytes], *, strip_first_space: bool = False) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_first_space = strip_first_space

    def push(self, token_ids: Sequence[int]) -> str:
        """The characters that `token_ids` complete. A character whose bytes are not all here waits for the next call."""
        table, size = self._token_bytes, len(self._token_bytes)
        return self._stripped(self._decoder.decode(b"".join([table[index] for index in token_ids if index < size])))

    def flush(self) -> str:
        """At the end of the stream: what is left of an incomplete character, as U+FFFD."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if not self._strip_first_space or not text:
            return text
        self._strip_first_space = False
        return text.removeprefix(" ")
