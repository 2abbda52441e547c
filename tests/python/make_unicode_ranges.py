#!/usr/bin/env python3
"""Writes src/tokenizer/unicode_ranges.c: what the `tokenizers` library takes each code point for.

    pip install tokenizers unicodedata2
    python tests/python/make_unicode_ranges.py > src/tokenizer/unicode_ranges.c

`tokenizers` mixes three Unicode versions: that of its Oniguruma (\\p{L}, \\p{N}), that of Rust's
standard library (the Digits pre-tokenizer) and regex crate (\\w beside an added token), and that of
its normalization tables (9.0: younger code points are left alone). So the library itself is asked,
one code point at a time.
"""

import unicodedata2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

ALL = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
BLOCK = 1024


def matched_by(pattern):
    """Code points that `pattern` matches in the library's Oniguruma."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for i in range(0, len(ALL), BLOCK):
        block = ALL[i:i + BLOCK]
        kept = set()
        for _, (begin, end) in split.pre_tokenize_str("".join(map(chr, block))):
            kept.update(block[begin:end])
        found.update(set(block) - kept)
    return found


def numeric():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {c for c in ALL if len(digits.pre_tokenize_str("a" + chr(c))) == 2}


def word():
    """Code points of \\w: a single_word token is not found before one."""
    t = Tokenizer(models.BPE({"Q": 0}, []))
    t.add_tokens([AddedToken("QQ", single_word=True, normalized=False)])
    return {c for c in ALL if len(t.encode("QQ" + chr(c)).ids) >= 2}


def inert():
    """Code points that Unicode decomposes, reorders or composes and the library does not."""
    nfd, nfkd, found = normalizers.NFD(), normalizers.NFKD(), set()
    for c in ALL:
        text = chr(c)
        decomposition = unicodedata2.decomposition(text)
        if decomposition:
            form = nfkd if decomposition.startswith("<") else nfd
            if form.normalize_str(text) == text:
                found.add(c)
                if not decomposition.startswith("<"):
                    parts = [int(p, 16) for p in decomposition.split()]
                    found.update(p for p in parts if p >= 0x10000)
        elif unicodedata2.combining(text):
            # Beside a mark of another class: one of class 1, or 230 if it is of class 1 itself.
            low, high = ("a" + text + "\u0334", "a\u0301" + text)
            moved = (nfd.normalize_str(low) != low
                     if unicodedata2.combining(text) > 1 else nfd.normalize_str(high) != high)
            if not moved:
                found.add(c)
    return found


def main():
    sets = [("LETTER", matched_by(r"\p{L}")), ("NUMBER", matched_by(r"\p{N}")),
            ("SPACE", matched_by(r"\s")), ("NUMERIC", numeric()), ("WORD", word()),
            ("INERT", inert()), ]
    ranges = []
    for c in ALL:
        flags = sum(1 << i for i, (_, members) in enumerate(sets) if c in members)
        if not flags:
            continue
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == flags:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, flags])
    print(
        "/* Made by tests/python/make_unicode_ranges.py; not to be edited. Flags as in unicode.h: "
        + ", ".join(f"{1 << i} {name}" for i, (name, _) in enumerate(sets)) + ". */")
    print('#include "tokenizer/unicode.h"\n\nconst unicode_range unicode_ranges[] = {')
    for first, last, flags in ranges:
        print(f"{{0x{first:04x}, 0x{last:04x}, {flags}}},")
    print(
        "};\nconst size_t unicode_range_count = sizeof unicode_ranges / sizeof unicode_ranges[0];\n"
    )
    ascii_flags = [
        sum(1 << i for i, (_, members) in enumerate(sets) if c in members) for c in range(128)
    ]
    print("const uint8_t unicode_ascii[128] = {" + ", ".join(map(str, ascii_flags)) + "};")


if __name__ == "__main__":
    main()
