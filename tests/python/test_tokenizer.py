"""The tokenizer against the `tokenizers` library: ids and decoded text must be equal.

The pipelines of SmolLM2, GPT-2, Llama-3 and Qwen2 get small vocabularies that are trained here;
SmolLM2's real one is tested too where TARE_SMOLLM2 names its folder.
"""
import itertools
import json
import os
import random
import unicodedata
from ctypes import POINTER, byref, c_bool, c_size_t, c_uint32, c_void_p, string_at

import libtare
import pytest
from libtare import TareError
from tokenizer_texts import GPT2, LLAMA3, QWEN2, SCRIPTS, assigned, make_texts, source_lines
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

E_MODEL, E_FORMAT, E_DATA = 4, 5, 6  # tare_status


# ---- libtare


class Tare(libtare.Tokenizer):
    """tare's tokenizer, with all that its API has."""

    library = None  # set by the fixture below

    def __init__(self, path):
        super().__init__(Tare.library, path)

    def __del__(self):
        self.close()

    def encode(self, text, special=True):
        data = text if isinstance(text, bytes) else text.encode()
        ids, count = POINTER(c_uint32)(), c_size_t()
        self.library.check(
            self.library.lib.tare_tokenizer_encode(self.handle, data, len(data), special,
                                                   byref(ids), byref(count)))
        result = ids[:count.value]
        self.library.lib.tare_free(self.library.context, ids)
        return result

    def decode(self, ids, skip=False):
        text, length = c_void_p(), c_size_t()
        self.library.check(
            self.library.lib.tare_tokenizer_decode(self.handle, (c_uint32 * len(ids))(*ids),
                                                   len(ids), skip, byref(text), byref(length)))
        result = string_at(text, length.value)
        assert string_at(text.value + length.value, 1) == b"\0"
        self.library.lib.tare_free(self.library.context, text)
        return result.decode()

    def vocab_size(self):
        return self.library.lib.tare_tokenizer_vocab_size(self.handle)


@pytest.fixture(scope="module", autouse=True)
def tare_library(library):
    lib = library.lib
    lib.tare_tokenizer_decode.argtypes = [
        c_void_p,
        POINTER(c_uint32), c_size_t, c_bool,
        POINTER(c_void_p),
        POINTER(c_size_t),
    ]
    lib.tare_tokenizer_vocab_size.argtypes = lib.tare_memory_used.argtypes = [c_void_p]
    lib.tare_tokenizer_vocab_size.restype = lib.tare_memory_used.restype = c_size_t
    Tare.library = library
    yield
    Tare.library = None


# ---- pipelines


def byte_level_model(pattern, normalizer, add_prefix_space=False, digits=False):
    """A small BPE tokenizer trained on the sources and the words of all scripts."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizer
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern:
        steps += [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    else:
        steps += [pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)]
    t.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=3000,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    t.train_from_iterator(source_lines() + list(SCRIPTS.values()) * 20, trainer)
    return t


def llama3():
    t = byte_level_model(LLAMA3, None)
    j = json.loads(t.to_str())
    j["model"]["ignore_merges"] = True
    # Tokens that no merge makes: with ignore_merges a word that is a token stays whole.
    for word in ("Ġquick", "булок"):
        j["model"]["vocab"].setdefault(word, max(j["model"]["vocab"].values()) + 1)
    t = Tokenizer.from_str(json.dumps(j))
    t.add_special_tokens([
        AddedToken(s, special=True, normalized=False) for s in ("<|begin_of_text|>", "<|eot_id|>")
    ])
    begin = t.token_to_id("<|begin_of_text|>")
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A",
                                      pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", begin)],
                                      ),
    ])
    return t


def qwen2():
    t = byte_level_model(QWEN2, normalizers.NFC())
    t.add_special_tokens([
        AddedToken(s, special=True, normalized=False)
        for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ])
    t.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return t


def gpt2():
    t = byte_level_model(None, None)
    t.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=True)])
    return t


def smollm2():
    t = byte_level_model(None, None, digits=True)
    t.add_special_tokens([
        AddedToken(s, special=True, normalized=False)
        for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")
    ])
    return t


def smollm2_itself():
    return Tokenizer.from_file(os.path.join(os.environ["TARE_SMOLLM2"], "tokenizer.json"))


PIPELINES = {"smollm2": smollm2, "gpt2": gpt2, "llama3": llama3, "qwen2": qwen2}
if "TARE_SMOLLM2" in os.environ:
    PIPELINES["SmolLM2-135M"] = smollm2_itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def open_both(t, path):
    """The tokenizer `t` and tare's, from the same file."""
    if isinstance(t, dict):
        t = json.dumps(t)
    elif isinstance(t, Tokenizer):
        t = t.to_str()
    path.write_text(t, encoding="utf-8")
    return Tokenizer.from_str(t), Tare(path)


@pytest.fixture(scope="module", params=PIPELINES)
def both(request, folder):
    return open_both(PIPELINES[request.param](), folder / f"{request.param}.json")


@pytest.fixture(scope="module")
def small(folder):
    """A tokenizer whose merges cross boundaries of words, so that every cut shows in the ids."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1500,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    t.train_from_iterator(make_texts(600, 5) + ["a1b22 c333  d\n"] * 50, trainer)
    return json.loads(t.to_str())


def assert_same(hf, tare, texts, special=True):
    for text, expected in zip(texts, hf.encode_batch(texts, add_special_tokens=special)):
        assert tare.encode(text, special) == expected.ids, repr(text)


# ---- tests


def test_ids_and_text(both):
    hf, tare = both
    texts = make_texts(20000, 1)
    expected = hf.encode_batch(texts)
    for text, e in zip(texts, expected):
        assert tare.encode(text) == e.ids, repr(text)
    for skip in (False, True):
        decoded = hf.decode_batch([e.ids for e in expected], skip_special_tokens=skip)
        for e, text in zip(expected, decoded):
            assert tare.decode(e.ids, skip) == text
    assert_same(hf, tare, texts[:2000], special=False)
    assert tare.vocab_size() == hf.get_vocab_size()


def test_every_code_point(both):
    hf, tare = both
    texts = [
        f"x{chr(c)}y {chr(c)}{chr(c)}3{chr(c)}'{chr(c)}\n{chr(c)} '{chr(c)}e 'l{chr(c)}"
        for c in assigned() + [0xE000, 0xF8FF, 0xF0000, 0x10FFFD]
    ]
    for i in range(0, len(texts), 10000):
        assert_same(hf, tare, texts[i:i + 10000])


def test_random_ids_decode(both):
    """Any ids: broken UTF-8 becomes U+FFFD just as in the library."""
    hf, tare = both
    rng = random.Random(3)
    size = hf.get_vocab_size()
    for _ in range(3000):
        ids = rng.choices(range(size), k=rng.randint(0, 12))
        for skip in (False, True):
            assert tare.decode(ids, skip) == hf.decode(ids, skip_special_tokens=skip)
    alphabet = [hf.token_to_id(c) for c in pre_tokenizers.ByteLevel.alphabet()]
    alphabet = [i for i in alphabet if i is not None]
    for _ in range(3000):
        ids = rng.choices(alphabet, k=rng.randint(0, 12))
        assert tare.decode(ids) == hf.decode(ids)


def test_long_words(both):
    hf, tare = both
    rng = random.Random(4)
    texts = [
        "a" * 100000, "ab" * 50000, "".join(rng.choices("abc", k=50000)), "é" * 30000,
        " " * 50000 + "x", "\n" * 50000 + " " * 50000 + "x", "=" * 65537, "漢字" * 20000,
        "e\u0301\u0323" * 10000, "a" + "\u0301\u0323" * 5000,
    ]
    assert_same(hf, tare, texts)


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2])
def test_oniguruma_agrees_with_scanners(folder, small, pattern):
    """In parentheses an expression is none of the known ones."""

    def with_pattern(p):
        j = dict(small,
                 pre_tokenizer={
                     "type":
                     "Sequence",
                     "pretokenizers": [{
                         "type": "Split",
                         "pattern": {
                             "Regex": p
                         },
                         "behavior": "Isolated",
                         "invert": False,
                     }, {
                         "type": "ByteLevel",
                         "add_prefix_space": False,
                         "trim_offsets": False,
                         "use_regex": False,
                     }, ],
                 },
                 )
        return open_both(j, folder / "pattern.json")

    hf, scanner = with_pattern(pattern)
    _, oniguruma = with_pattern(f"(?:{pattern})")
    texts = make_texts(6000, 6)
    assert_same(hf, scanner, texts)
    assert_same(hf, oniguruma, texts)


@pytest.mark.parametrize(
    "behavior", ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
@pytest.mark.parametrize("invert", [False, True])
def test_split_behaviors(folder, small, behavior, invert):
    texts = make_texts(
        600, 7) + ["", "a", "11", "1a1", "a1", "a  b", "  ", "aa.bb..c", "xax", "ax", "xa", ]
    patterns = [{
        "Regex": r"\d"
    }, {
        "Regex": r"\s+"
    }, {
        "Regex": LLAMA3
    }, {
        "Regex": ""
    }, {
        "Regex": "x*"
    }, {
        "Regex": r"(?=[A-Z])"
    }, {
        "String": " "
    }, {
        "String": "a"
    }, {
        "String": ".."
    }, {
        "String": ""
    }, {
        "String": "a.b*"
    }, {
        "Regex": r"[^a]\b"
    }, ]
    for i, pattern in enumerate(patterns):
        j = dict(small,
                 pre_tokenizer={
                     "type":
                     "Sequence",
                     "pretokenizers": [{
                         "type": "Split",
                         "pattern": pattern,
                         "behavior": behavior,
                         "invert": invert
                     }, {
                         "type": "ByteLevel",
                         "add_prefix_space": False,
                         "trim_offsets": False,
                         "use_regex": False,
                     }, ],
                 },
                 )
        hf, tare = open_both(j, folder / f"split{i}.json")
        assert_same(hf, tare, texts)


def byte_level(space, regex):
    return {
        "type": "ByteLevel",
        "add_prefix_space": space,
        "trim_offsets": True,
        "use_regex": regex,
    }


@pytest.mark.parametrize("pre_tokenizer", [
    None,
    byte_level(True, True),
    byte_level(True, False),
    byte_level(False, True), {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True
    }, {
        "type": "Sequence",
        "pretokenizers": []
    }, {
        "type": "Sequence",
        "pretokenizers": [{
            "type": "Digits",
            "individual_digits": False
        }, byte_level(True, True), ],
    }, {
        "type": "Sequence",
        "pretokenizers":
        [byte_level(False, False), {
            "type": "Digits",
            "individual_digits": True
        }, ],
    }, {
        "type": "Sequence",
        "pretokenizers": [byte_level(True, True), byte_level(True, True)]
    }, {
        "type":
        "Sequence",
        "pretokenizers": [{
            "type": "Sequence",
            "pretokenizers": [{
                "type": "Digits",
                "individual_digits": True
            }],
        },
                          byte_level(False, True), ],
    },
],
                         ids=str,
                         )
def test_pre_tokenizers(folder, small, pre_tokenizer):
    hf, tare = open_both(dict(small, pre_tokenizer=pre_tokenizer), folder / "pre.json")
    assert_same(hf, tare, make_texts(3000, 8))


@pytest.mark.parametrize(
    "names", [["NFC"], ["NFD"], ["NFKC"], ["NFKD"], ["NFD", "NFC"], ["NFKD", "NFC", "NFD"], []])
def test_normalizers(folder, small, names):
    stages = [{"type": n} for n in names]
    normalizer = stages[0] if len(stages) == 1 else {"type": "Sequence", "normalizers": stages}
    hf, tare = open_both(dict(small, normalizer=normalizer), folder / "norm.json")
    assert_same(hf, tare, make_texts(6000, 9))
    base = "a\u0301{}\u0323\u0301{}"
    assert_same(hf, tare,
                [base.format(chr(c), unicodedata.normalize("NFKD", chr(c))) for c in assigned()])


def test_added_tokens(folder, small):
    rng = random.Random(10)
    contents = [
        "<a>", "<a><b>", "ab", "abc", "bc", " ", "\n", "  x", "é", "e\u0301", "ÅB", "A\u030aB",
        "aaaa", "aaaab", "a", "_", "漢", "<|x|>", "Ġ", "\u00a0y", "'s", "12",
    ]
    pieces = contents + [
        "x", "b", "aa", " ", "  ", "\n", "e", "\u0301", ".", "9", "ⓐ", "\u200d", "\u3000", "<",
        "漢字",
    ]
    flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    for round_ in range(60):
        added = []
        for content in rng.choices(contents, k=rng.randint(1, 8)):
            added.append({
                "id": rng.randrange(5000),
                "content": content,
                **{f: rng.random() < 0.4 for f in flags},
            })
        normalizer = rng.choice([None, {"type": "NFC"}, {"type": "NFD"}])
        hf, tare = open_both(dict(small, added_tokens=added, normalizer=normalizer),
                             folder / "added.json")
        texts = ["".join(rng.choices(pieces, k=rng.randint(1, 14))) for _ in range(200)]
        for text in texts:
            try:
                expected = hf.encode(text).ids
            except BaseException as e:  # lstrip beside rstrip can make the library panic
                assert "PanicException" in type(e).__name__
                continue
            assert tare.encode(text) == expected, (added, text)
            for skip in (False, True):
                assert tare.decode(expected, skip) == hf.decode(expected, skip_special_tokens=skip)
        assert tare.vocab_size() == hf.get_vocab_size()


def test_model_forms(folder, small):
    """Merges as strings, old options, gaps between ids, no type, unknown tokens, repetitions."""
    texts = make_texts(600, 11)
    j = json.loads(json.dumps(small))
    j["model"]["merges"] = ["#version: 0.2"] + [" ".join(m) for m in j["model"]["merges"]]
    j["model"].update(continuing_subword_prefix="", end_of_word_suffix="", dropout=0.0)
    del j["model"]["type"]
    hf, tare = open_both(j, folder / "strings.json")
    assert_same(hf, tare, texts)

    j = json.loads(json.dumps(small))
    j["model"]["vocab"] = {k: 3 * v + 7 for k, v in reversed(j["model"]["vocab"].items())}
    j["model"]["merges"] += j["model"]["merges"][:50]
    hf, tare = open_both(j, folder / "gaps.json")
    assert_same(hf, tare, texts)
    ids = list(range(0, 100))
    assert tare.decode(ids) == hf.decode(ids)

    for unk, fuse in itertools.product([None, "a", "Ġ"], [False, True]):
        j = json.loads(json.dumps(small))
        lost = [c for c in j["model"]["vocab"] if len(c) == 1 and c not in "aĠ"][::3]
        j["model"]["vocab"] = {
            k: v
            for k, v in j["model"]["vocab"].items() if not set(k) & set(lost)
        }
        j["model"]["merges"] = [m for m in j["model"]["merges"] if not set("".join(m)) & set(lost)]
        j["model"].update(unk_token=unk, fuse_unk=fuse)
        hf, tare = open_both(j, folder / "unknown.json")
        assert_same(hf, tare, texts)


def test_decoders(folder, small):
    for decoder in (None, {
            "type": "Sequence",
            "decoders": []
    }, {
            "type": "Sequence",
            "decoders": [byte_level(True, True), byte_level(True, True)]
    },
                    ):
        hf, tare = open_both(dict(small, decoder=decoder), folder / "decoder.json")
        for text in make_texts(300, 12):
            ids = hf.encode(text).ids
            assert tare.decode(ids) == hf.decode(ids)


@pytest.mark.parametrize(
    "path,value,status,message",
    [(["normalizer"], {
        "type": "Lowercase"
    }, E_MODEL, "Lowercase"), (["normalizer"], {}, E_MODEL, "normalizer"),
     (["pre_tokenizer"], {
         "type": "Metaspace"
     }, E_MODEL, "Metaspace"),
     (["pre_tokenizer"], {
         "type": "Split",
         "pattern": {
             "Regex": "("
         },
         "behavior": "Isolated",
         "invert": False
     }, E_MODEL, "regular expression",
      ),
     (["pre_tokenizer"], {
         "type": "Split",
         "pattern": {
             "Regex": "a"
         },
         "behavior": "Torn",
         "invert": False
     }, E_MODEL, "Torn",
      ), (["decoder"], {
          "type": "WordPiece"
      }, E_MODEL, "WordPiece"),
     (["post_processor"], {
         "type": "BertProcessing"
     }, E_MODEL, "BertProcessing"), (["model", "type"], "Unigram", E_MODEL, "Unigram"),
     (["model", "byte_fallback"], True, E_MODEL, "byte_fallback"),
     (["model", "dropout"], 0.1, E_MODEL, "dropout"),
     (["model", "continuing_subword_prefix"], "##", E_MODEL, "continuing_subword_prefix"),
     (["model", "end_of_word_suffix"], "</w>", E_MODEL, "end_of_word_suffix"),
     (["model", "merges"], [["a", "nowhere"]], E_MODEL, "nowhere"),
     (["model", "merges"], [["a"]], E_MODEL, "merge"),
     (["model", "merges"], ["a b c"], E_MODEL, "merge"),
     (["model", "merges"], [["a", "b"], "a b"], E_MODEL, "merge"),
     (["model", "merges"], None, E_MODEL, "merges"), (["model", "vocab", "a"], "1", E_MODEL, '"a"'),
     (["model", "vocab", "a"], 1.5, E_MODEL, '"a"'), (["model", "vocab", "a"], -1, E_MODEL, '"a"'),
     (["model", "vocab", "a"], 2**31, E_MODEL, '"a"'),
     (["model", "vocab", "a"], 3, E_MODEL, "same id"), (["model"], None, E_MODEL, "model"),
     (["version"], "2.0", E_MODEL, "2.0"), (["added_tokens"], {}, E_MODEL, "added_tokens"),
     (["added_tokens"], [{
         "id": 1,
         "content": "x"
     }], E_MODEL, "special"), ],
    ids=str,
)
def test_refused(folder, small, path, value, status, message):
    j = json.loads(json.dumps(small))
    target = j
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    file = folder / "refused.json"
    file.write_text(json.dumps(j))
    with pytest.raises(TareError, match=message) as e:
        Tare(file)
    assert e.value.status == status and "refused.json" in str(e.value)


def test_malformed_file(folder, small):
    file = folder / "malformed.json"
    text = json.dumps(small)
    for broken in ("", "{", text[:-1], text + "x", text[:len(text) // 2], '{"a":1,"a":2}',
                   '{"x":"\\ud800"}',
                   ):
        file.write_text(broken)
        with pytest.raises(TareError) as e:
            Tare(file)
        assert e.value.status == E_FORMAT and "malformed.json" in str(e.value)


def test_retries_are_limited(folder, small):
    j = dict(small,
             pre_tokenizer={
                 "type": "Split",
                 "pattern": {
                     "Regex": "(a+)+$"
                 },
                 "behavior": "Isolated",
                 "invert": False,
             },
             )
    file = folder / "retries.json"
    file.write_text(json.dumps(j))
    with pytest.raises(TareError, match="retry-limit") as e:
        Tare(file).encode("a" * 60 + "b")
    assert e.value.status == E_MODEL


def test_bad_text_and_ids(folder, small):
    file = folder / "small.json"
    file.write_text(json.dumps(small))
    tare = Tare(file)
    for bad in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"):
        with pytest.raises(TareError) as e:
            tare.encode(bad)
        assert e.value.status == E_DATA
    with pytest.raises(TareError, match="out of range") as e:
        tare.decode([1, 10**6])
    assert e.value.status == E_DATA
    assert tare.encode("") == [] and tare.decode([]) == ""
    assert tare.decode(tare.encode("a\0b")) == "a\0b"


def test_no_memory_is_lost(library, folder, small):
    file = folder / "leak.json"
    file.write_text(json.dumps(small))
    before = library.lib.tare_memory_used(library.context)
    for _ in range(3):
        tare = Tare(file)
        tare.decode(tare.encode("Some text, " * 1000))
        del tare
    assert library.lib.tare_memory_used(library.context) == before
