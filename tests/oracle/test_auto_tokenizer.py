"""A folder's token ids against transformers' AutoTokenizer: tokenizer.json with other files beside it.

Random tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json stand beside
small tokenizers made here, and the classes and flags that count beside real ones (SmolLM2's, and
those that TARE_TOKENIZERS holds: DeepSeek-V3's and Llama-2's).
"""
import json
import os
import pathlib
import random
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import libtare  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
import transformers  # noqa: E402
from libtare import TareError  # noqa: E402
from tokenizer_texts import make_texts  # noqa: E402

transformers.logging.set_verbosity_error()
CLASSES = ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "PreTrainedTokenizer",
           "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast",
           "GemmaTokenizer", "GemmaTokenizerFast", "CohereTokenizerFast", "CodeLlamaTokenizerFast",
           "GPTNeoXTokenizerFast", "CodeGenTokenizer", "BloomTokenizerFast"]
MODEL_TYPES = ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "phi3",
               "deepseek_v2", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "glm4", "glm",
               "cohere", "cohere2", "gpt2", "gpt_neox", "olmo2", "olmo3", "ministral", "smollm3",
               "starcoder2", "stablelm", "phi", "bloom", "exaone4", "gpt_oss", "granite_not_known"]
ATTRIBUTES = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
              "mask_token"]
CONTENTS = ["<|begin|>", "<|end|>", "<s>", "</s>", "<unk>", "<|endoftext|>", "<pad>", "<|im_end|>",
            "<new>", "<neu 2>", "th", "é", "<BOS_TOKEN>", "▁<PRE>", "the"]
FLAGS = ["lstrip", "rstrip", "single_word", "normalized", "special"]


# ---- tokenizers


def added_token(rng, content, **others):
    return {"content": content, **{flag: rng.random() < 0.3 for flag in FLAGS}, **others}


def byte_level(rng):
    """The bytes, and added tokens at random."""
    root = tiny.make_tokenizer()
    root["pre_tokenizer"]["add_prefix_space"] = rng.random() < 0.3
    names = rng.sample(CONTENTS, rng.randrange(6))
    root["added_tokens"] = [added_token(rng, name, id=300 + i) for i, name in enumerate(names)]
    if rng.random() < 0.3:
        digits = {"type": "Digits", "individual_digits": True}
        root["pre_tokenizer"] = {"type": "Sequence",
                                 "pretokenizers": [digits, root["pre_tokenizer"]]}
    if rng.random() < 0.2:
        root["normalizer"] = {"type": "NFC"}
    if rng.random() < 0.4:
        root["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [256],
                                             "tokens": ["<|begin|>"]}}}
    if rng.random() < 0.1:
        root["padding"] = {"strategy": "BatchLongest", "direction": "Right",
                           "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                           "pad_token": "<padding>"}
    if rng.random() < 0.2:  # a gap behind the vocabulary's last id
        root["model"]["vocab"]["<far>"] = 1000
        root["added_tokens"].append(added_token(rng, "<far>", id=1000))
    return root


def pieces(rng):
    """Letters and a few words as SentencePiece has them, with bytes to fall back on."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzTQ.,<>|/"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for text in [*letters, "th", "the", "▁the"]:
        vocab[text] = len(vocab)
    old = rng.random() < 0.5
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": rng.random() < 0.5, "special": True}
               for t, i in list(vocab.items())[:3]]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, replace]} if old else None,
            "pre_tokenizer": None if old else {"type": "Metaspace", "replacement": "▁",
                                               "prepend_scheme": "first", "split": False},
            "post_processor": None, "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>",
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                      "vocab": vocab, "merges": [["t", "h"], ["th", "e"], ["▁", "the"]]}}


# ---- the files beside it


def token_form(rng, content):
    """Text, or an object as transformers writes it."""
    if rng.random() < 0.6:
        return content
    token = {"__type": "AddedToken", "content": content}
    return token | {flag: rng.random() < 0.4 for flag in FLAGS if rng.random() < 0.7}


def random_config(rng):
    config = {}
    if rng.random() < 0.75:
        config["tokenizer_class"] = rng.choice(CLASSES) if rng.random() < 0.95 else None
    for name in ("add_bos_token", "add_eos_token"):
        if rng.random() < 0.6:
            config[name] = rng.choice([True, True, False, None])
    for name in ATTRIBUTES:
        if rng.random() < (0.7 if name in ("bos_token", "eos_token") else 0.25):
            config[name] = (None if rng.random() < 0.15 else
                            token_form(rng, rng.choice(CONTENTS)))
    if rng.random() < 0.3:
        config["additional_special_tokens"] = [token_form(rng, t)
                                               for t in rng.sample(CONTENTS, 3)]
    if rng.random() < 0.1:
        config["extra_special_tokens"] = {"image_token": token_form(rng, "<image>")}
    if rng.random() < 0.5:
        config["added_tokens_decoder"] = {
            str(rng.randrange(250, 320)): {
                key: value for key, value in added_token(rng, name).items()
                if key == "content" or rng.random() < 0.8}
            for name in rng.sample(CONTENTS, rng.randrange(6))}
    if rng.random() < 0.15:
        config["add_prefix_space"] = rng.choice([True, False, None])
    if rng.random() < 0.1:
        config["split_special_tokens"] = rng.random() < 0.8
    return config


def write_random_files(rng, folder):
    beside = {"tokenizer_config.json": random_config(rng) if rng.random() < 0.95 else None}
    model_type = rng.choice(MODEL_TYPES)
    config = {"model_type": model_type}
    if rng.random() < 0.1:
        config["tokenizer_class"] = rng.choice(CLASSES)
    beside["config.json"] = config
    if rng.random() < 0.4:
        names = {name: rng.choice([rng.choice(CONTENTS), added_token(rng, rng.choice(CONTENTS))])
                 for name in ATTRIBUTES if rng.random() < 0.4}
        if rng.random() < 0.4:
            names["additional_special_tokens"] = [
                rng.choice([t, added_token(rng, t)]) for t in rng.sample(CONTENTS, 2)]
        beside["special_tokens_map.json"] = names
    # Not with such a list: transformers then takes its last token for another (added_tokens_map is
    # given the wrong key).
    lists = "additional_special_tokens" in beside.get("special_tokens_map.json", {})
    if rng.random() < 0.3 and not lists:
        beside["added_tokens.json"] = {name: 400 + i
                                       for i, name in enumerate(rng.sample(CONTENTS, 3))}
    for name in ("special_tokens_map.json", "added_tokens.json", *beside):
        (folder / name).unlink(missing_ok=True)
    for name, root in beside.items():
        if root is not None:
            (folder / name).write_text(json.dumps(root, ensure_ascii=rng.random() < 0.5))
    return beside


# ---- comparing


def auto_tokenizer(folder):
    """transformers' tokenizer, or its refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # of many kinds
        return error


def compare(library, folder, texts, what):
    """True if both gave ids. tare may take what transformers refuses, but not the other way."""
    reference = auto_tokenizer(folder)
    try:
        tokenizer = libtare.Tokenizer(library, folder)
    except TareError as error:
        assert isinstance(reference, Exception), (what, str(error))
        return False
    with tokenizer:
        if isinstance(reference, Exception):
            return False
        for text in texts:
            for special in (True, False):
                expected = reference(text, add_special_tokens=special)["input_ids"]
                assert tokenizer.encode(text, special) == expected, (what, text, special)
        size = library.lib.tare_tokenizer_vocab_size(tokenizer.handle)
        assert size == len(reference), what
    return True


def texts_around(rng, count):
    parts = [*CONTENTS, " ", "  ", "\n", "the", "Then", "x", "Q.", "<image>", "12", "量"]
    return [" the quick", "", *("".join(rng.choices(parts, k=rng.randrange(1, 7)))
                                for _ in range(count))]


@pytest.mark.parametrize("make", [byte_level, pieces])
@pytest.mark.parametrize("part", range(4))
def test_random_folders(library, tmp_path, make, part):
    rng = random.Random(f"{make.__name__} {part}")
    both = 0
    for case in range(150):
        (tmp_path / "tokenizer.json").write_text(json.dumps(make(rng)))
        beside = write_random_files(rng, tmp_path)
        both += compare(library, tmp_path, texts_around(rng, 12), (part, case, beside))
    assert both > 60


def real_tokenizers():
    found = {}
    if "TARE_SMOLLM2" in os.environ:
        found["smollm2"] = pathlib.Path(os.environ["TARE_SMOLLM2"]) / "tokenizer.json"
    for path in sorted(pathlib.Path(os.environ.get("TARE_TOKENIZERS", "/nowhere")).glob("*.json")):
        found[path.stem] = path
    return found


FAMILIES = {"smollm2": ("<|im_start|>", "<|im_end|>"),
            "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
            "llama2": ("<s>", "</s>")}


@pytest.mark.parametrize("name", real_tokenizers() or [pytest.param(
    "none", marks=pytest.mark.skip("neither TARE_SMOLLM2 nor TARE_TOKENIZERS is set"))])
def test_real_tokenizers(library, tmp_path, name):
    (tmp_path / "tokenizer.json").symlink_to(real_tokenizers()[name].resolve())
    bos, eos = FAMILIES[name]
    texts = [*make_texts(150, 11), f"{bos}Hi {eos} there", "<think>\n", "<|end|>x"]
    added = {"__type": "AddedToken", "content": bos, "lstrip": False, "rstrip": False,
             "normalized": True, "single_word": False}
    both = 0
    for case in range(24):
        rng = random.Random(f"{name} {case}")
        config = {"tokenizer_class": rng.choice(CLASSES[:8]), "bos_token": rng.choice([bos, added]),
                  "eos_token": eos, "unk_token": None, "legacy": True, "model_max_length": 16384}
        for key in ("add_bos_token", "add_eos_token"):
            if rng.random() < 0.7:
                config[key] = rng.random() < 0.5
        model = {"model_type": rng.choice(["llama", "qwen2", "deepseek_v3", "mistral", "phi3"])}
        if rng.random() < 0.4:
            del config["tokenizer_class"]
        if rng.random() < 0.4:
            config["added_tokens_decoder"] = {"200000": {"content": "<|end|>", "special": True,
                                                         "rstrip": rng.random() < 0.5}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "config.json").write_text(json.dumps(model))
        both += compare(library, tmp_path, texts if case < 4 else texts[-40:], (case, config, model))
    assert both > 20
