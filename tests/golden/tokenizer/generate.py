"""Writes smollm2.json: what llama.cpp makes of a varied corpus with the embedded model's vocabulary.

    pip install llama-cpp-python==0.3.36 && python tests/golden/tokenizer/generate.py MODEL.gguf

The tests need the golden file only.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 20261122
PLAIN = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "  leading and trailing  ",
    "multiple   inner    spaces     here",
    "tabs\tand\t\ttabs \t mixed",
    "line\nbreaks\n\nand\r\nwindows\r\n\r\n",
    "\n",
    "\n\n\n",
    " \n \n ",
    "\t\n\t",
    "trailing newline\n",
    "0",
    "7 77 777 7777 77777",
    "1234567890",
    "3.14159, 2,718,281 and -1e-10",
    "1st 2nd 3rd 4th, 100% of $5.00 €6 £7 ¥8",
    "v1.2.3-rc.4+build.567",
    "2026-11-22T21:51:07.123Z",
    "٣٤٥ ४५६ ①②③ ½ ⅔ Ⅷ 四五",
    "I'm you're he's we'll they've I'd can't won't",
    "I'M YOU'RE HE'S WE'LL THEY'VE I'D CAN'T",
    "rock 'n' roll, 'tis, 'quoted', o'clock's",
    "’smart’ “quotes” – dashes — and…",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A(B):\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] << 3; }",
    '{"name": "Ann", "age": 30, "tags": ["x", null, true], "nested": {"k": -1.5e+7}}',
    '<div class="a b">text &amp; more</div>\n<!-- comment -->',
    "SELECT * FROM t WHERE id >= 10 AND name LIKE '%x%';",
    "https://example.org:8080/path/to?q=1&r=%20two#frag",
    "mail me at first.last+tag@sub.example.co.uk!",
    "C:\\Users\\me\\file.txt and /usr/local/bin",
    "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE",
    "$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$",
    "你好，世界！今天天气很好。",
    "中文English混排123测试",
    "日本語のテキスト。カタカナ、ひらがな、漢字",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "Привет, мир! Ёлки-палки.",
    "Γειά σου Κόσμε",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Zażółć gęślą jaźń",
    "Tiếng Việt có dấu",
    "ﬁ ligature, ａｂｃ fullwidth, ℌ script",
    "e\u0301 combining, n\u0303, a\u0308\u0304",
    "😀😃😄",
    "👨‍👩‍👧‍👦 family, 👩🏽‍🚀 astronaut, 🏳️‍🌈 flag, 🇩🇪🇯🇵",
    "text😀text 😀 text",
    "❤️ vs ❤, ☎︎ vs ☎️, ©®™",
    "𝕳𝖊𝖑𝖑𝖔 𝒲𝑜𝓇𝓁𝒹 𐍈 𓀀",
    "\u00a0nbsp\u00a0\u2003em\u3000ideographic\u200bzero\u2028line\u2029para\u0085nel",
    "\ufeffbom and \u200e\u200f marks \u00ad soft",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f",
    "\x0b\x0c\x1c\x1d\x1e\x1f separators",
    "\ufffd\ufffd replacement",
    "\ue000 private \U000f0000 use",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "<|im_start|><|im_end|><|endoftext|><repo_name>a/b<file_sep>x",
    "no <|im_start| special |im_end|> here <|im_start",
    " <|im_end|> spaces around <|im_end|> ",
    "<jupyter_code>print(1)<jupyter_output>1<empty_output>",
    "<filename>a.py<gh_stars>100<issue_start><issue_comment><issue_closed>",
    "a" * 500,
    " " * 300,
    "\n" * 200,
    "ab" * 250,
    "=" * 120,
    "-=" * 60,
    "9" * 200,
    "é" * 100,
    "中" * 100,
    "😀" * 50,
    "!?" * 40,
    "word " * 100,
    "antidisestablishmentarianism floccinaucinihilipilification",
    "xkcdqwrtzpsdfghjklmnbvcxy",
    "AAAAaaaaAAAAaaaa",
    "x=1;y=2;z=x+y",
    "a'b''c'''d",
    "it's'its's",
    "...!!!???,,,;;;:::",
    "( [ { < > } ] )",
    "#hashtag @mention $cash ^caret ~tilde `tick`",
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ",
    "ABCabc 0123456789",
    " \t\n\r",
    "'smtdrevl ",
    "0123456789.,-+e ",
    "{}[]()<>:;\"'`|\\/ =+-*&^%$#@!~",
    "你好世界天地人中文的一是不了在有 ",
    "ابتثجحخدذرزسش ؟،",
    "абвгдежз АБВ ",
    "😀😃🏽\u200d\ufe0f👨👩👧🇩🇪 ",
    "é\u0301ñ\u0303ü ",
    "\u00a0\u2003\u3000\u200b a",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x7f a",
]


def corpus() -> list[str]:
    return PLAIN + random_texts(random.Random(SEED))


def random_texts(rng: random.Random) -> list[str]:
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for alphabet in ALPHABETS for _ in range(12)]
    texts += ["".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(5, 80))) for _ in range(80)]
    texts += [rng.randbytes(rng.randint(1, 60)).decode("utf-8", "replace") for _ in range(60)]
    texts += ["".join(chr(any_code_point(rng)) for _ in range(rng.randint(1, 30))) for _ in range(60)]
    texts += [joined(rng) for _ in range(60)]
    return texts


def any_code_point(rng: random.Random) -> int:
    code = rng.choice((rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)))
    return 0xFFFD if 0xD800 <= code < 0xE000 else code


def joined(rng: random.Random) -> str:
    """Pieces of the plain texts, cut anywhere, with special tokens between."""
    pieces = []
    for _ in range(rng.randint(2, 6)):
        text = rng.choice(PLAIN)
        start = rng.randint(0, len(text))
        pieces.append(text[start : start + rng.randint(1, 40)])
        pieces.append(rng.choice(("", " ", "\n", "<|im_end|>", "<|im_start|>", "7")))
    return "".join(pieces)


def main(model: str) -> None:
    from llama_cpp import Llama

    llama = Llama(model_path=model, vocab_only=True, verbose=False)
    texts = list(dict.fromkeys(corpus()))
    cases = [{"text": text, "ids": llama.tokenize(text.encode("utf-8"), add_bos=False, special=True)} for text in texts]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    Path(__file__).with_name("smollm2.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(cases)} texts")


if __name__ == "__main__":
    main(sys.argv[1])
