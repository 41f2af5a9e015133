"""Names of blocks of KV: a block's key says all that its KV depends on, which is every token from the first of the sequence on."""

from __future__ import annotations

from hashlib import blake2b

from ramet.runtime.cache.radix_tree import TokenArray

KEY_BYTES = 20
"""A collision would give one prompt another one's KV: at 160 bits nobody will see one, nor make one."""

BlockKey = bytes


def block_keys(namespace: str, tokens: TokenArray, block_tokens: int) -> list[BlockKey]:
    """One key per whole block of `tokens`; each is made of the one before it and the block's own tokens."""
    key = blake2b(namespace.encode(), digest_size=KEY_BYTES).digest()
    data = tokens.astype("<i4", copy=False).tobytes()
    size = 4 * block_tokens
    keys = []
    for end in range(size, len(data) + 1, size):
        key = blake2b(data[end - size : end], digest_size=KEY_BYTES, key=key).digest()
        keys.append(key)
    return keys
