"""What stands beside a tokenizer.json counts: `tare tokenize` on a tokenizer of single bytes.

The ids are worked out by hand from the rules of transformers 4.57 (tests/oracle/test_auto_tokenizer.py
asks it): a letter is its byte, <|begin|> is 256, <|end|> 257, th 258, " t" 259; 260 comes next.
"""
import json

import pytest
import tiny

BAD_DATA = 1
LLAMA, PLAIN = "LlamaTokenizerFast", "PreTrainedTokenizerFast"
BEGIN, END, HI = 256, 257, [104, 105]
NAMES = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": None}


@pytest.fixture
def ids(tare, tmp_path):
    """ids(text, tokenizer_config.json, other files) -> the ids of a text, of the folder with these files."""
    def write(beside, files):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(files.pop("tokenizer", None)
                                                          or tiny.make_tokenizer()))
        if beside is not None:
            files["tokenizer_config"] = beside
        for name, root in files.items():
            text = root if isinstance(root, str) else json.dumps(root)
            (folder / f"{name}.json").write_text(text)
        return folder

    def get(text, beside, path=lambda folder: folder, refused=None, **files):
        texts = tmp_path / "texts.json"
        texts.write_text(json.dumps([text]))
        done = tare("tokenize", path(write(beside, files)), "--text", texts)
        get.stderr = done.stderr
        if refused:
            assert done.returncode == BAD_DATA and refused in done.stderr, done.stderr
            return None
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return get


@pytest.mark.parametrize("name", ["LlamaTokenizer", LLAMA, "GemmaTokenizer", "CohereTokenizerFast",
                                  "CodeLlamaTokenizer"])
def test_classes_that_set_the_template(ids, name):
    """add_bos_token is true unless it is said, add_eos_token is not; null is false."""
    config = {"tokenizer_class": name, **NAMES, "pad_token": None}
    for bos, eos, expected in [({}, {}, [BEGIN, *HI]), (True, {}, [BEGIN, *HI]), (False, {}, HI),
                               (None, {}, HI), ({}, True, [BEGIN, *HI, END]),
                               (False, True, [*HI, END]), (True, False, [BEGIN, *HI])]:
        flags = {key: value for key, value in (("add_bos_token", bos), ("add_eos_token", eos))
                 if value != {}}
        assert ids("hi", config | flags) == expected, flags


@pytest.mark.parametrize("name", [PLAIN, "PreTrainedTokenizer", "Qwen2Tokenizer",
                                  "GPT2TokenizerFast", "TokenizersBackend"])
def test_classes_that_do_not(ids, name):
    config = {"tokenizer_class": name, **NAMES, "add_bos_token": True, "add_eos_token": True}
    assert ids("hi", config) == HI


def test_the_template_of_the_file_gives_way(ids):
    """A Llama class replaces it, whatever it says; the plain class keeps it."""
    tokenizer = tiny.make_tokenizer()
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|end|>", "type_id": 0}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [END], "tokens": ["<|end|>"]}}}
    for name, expected in ((LLAMA, [BEGIN, *HI]), (PLAIN, [*HI, END])):
        assert ids("hi", {"tokenizer_class": name, **NAMES}, tokenizer=tokenizer) == expected
    assert ids("hi", {"tokenizer_class": LLAMA, **NAMES, "add_bos_token": False},
               tokenizer=tokenizer) == HI


@pytest.mark.parametrize("model_type, front", [
    ("llama", True), ("mistral", True), ("mixtral", True), ("deepseek_v2", True),
    ("deepseek_v3", True), ("phi3", True), ("gemma2", True), ("gemma3_text", True),
    ("qwen2", False), ("qwen3", False), ("qwen3_moe", False), ("glm4", False), ("unheard", False)])
def test_the_class_follows_from_the_model(ids, model_type, front):
    expected = [BEGIN, *HI] if front else HI
    config = {**NAMES, "pad_token": None}
    assert ids("hi", config, config={"model_type": model_type}) == expected
    assert ids("hi", {**config, "tokenizer_class": None}, config={"model_type": model_type}) == expected
    assert ids("hi", None, config={"model_type": model_type},
               special_tokens_map={**config, "unk_token": "th"}) == expected
    assert ids("hi", config, config={"model_type": model_type, "tokenizer_class": PLAIN}) == HI
    assert ids("hi", {**config, "tokenizer_class": PLAIN}, config={"model_type": model_type}) == HI


@pytest.mark.parametrize("form", [
    "<|begin|>", {"__type": "AddedToken", "content": "<|begin|>", "lstrip": False, "rstrip": False,
                  "normalized": True, "single_word": False}])
def test_forms_of_a_token(ids, form):
    assert ids("hi", {"tokenizer_class": LLAMA, **NAMES, "bos_token": form}) == [BEGIN, *HI]


def test_tokens_that_only_the_files_have(ids):
    """They come behind the vocabulary, by the keys of added_tokens_decoder, then special tokens in
    the order bos, eos, unk, sep, pad, cls, mask, additional."""
    plain = {"tokenizer_class": PLAIN}
    decoder = {"added_tokens_decoder": {"301": {"content": "<b>"}, "300": {"content": "<a>"}}}
    assert ids("<a>x<b><c>", plain | decoder) == [260, 120, 261, 60, 99, 62]
    named = {"additional_special_tokens": ["<c>"], "pad_token": "<p>"}
    assert ids("<a><c><p>", plain | decoder | named) == [260, 263, 262]
    assert ids("<c><p>", plain | named) == [261, 260]
    assert ids("<x>", plain | {"extra_special_tokens": {"image_token": "<x>"}}) == [260]
    # of the vocabulary already: their ids stay, but they are cut out of the text
    assert ids("wth!", plain | {"added_tokens_decoder": {"258": {"content": "th", "rstrip": True}}}
               ) == [119, 258, 33]
    assert ids("hi", {"tokenizer_class": LLAMA, **NAMES, "bos_token": "<s>"}) == [260, *HI]
    assert "new id 260" in ids.stderr and "LlamaTokenizerFast" in ids.stderr


def test_flags_of_added_tokens(ids):
    def of(**flags):
        return {"tokenizer_class": PLAIN,
                "added_tokens_decoder": {"260": {"content": "<a>", **flags}}}
    assert ids("x <a> y", of()) == [120, 32, 260, 32, 121]
    assert ids("x <a> y", of(lstrip=True)) == [120, 260, 32, 121]
    assert ids("x <a> y", of(rstrip=True)) == [120, 32, 260, 121]
    assert ids("x<a>y", of(single_word=True)) == [120, 60, 97, 62, 121]
    special = of(special=True) | {"split_special_tokens": True}
    assert ids("<a>", special) == [60, 97, 62]


def test_legacy_files(ids):
    """special_tokens_map.json wins over tokenizer_config.json, added_tokens.json adds; with an
    added_tokens_decoder neither is read."""
    config = {"tokenizer_class": LLAMA, **NAMES, "bos_token": "<|end|>"}
    files = {"special_tokens_map": {"bos_token": {"content": "<|begin|>"}},
             "added_tokens": {"<n>": 300}}
    assert ids("<n>", config, **files) == [BEGIN, 260]
    assert ids("<n>", config | {"added_tokens_decoder": {}}, **files) == [END, 60, 110, 62]


@pytest.mark.parametrize("said, expected", [({}, [120]), ({"add_prefix_space": True}, [32, 120]),
                                            ({"add_prefix_space": False}, [120]),
                                            ({"add_prefix_space": None}, [32, 120])])
def test_add_prefix_space(ids, said, expected):
    """Of a ByteLevel that is the whole pre-tokenizer; null leaves it as it is in the file."""
    tokenizer = tiny.make_tokenizer()
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    assert ids("x", {"tokenizer_class": PLAIN, **said}, tokenizer=tokenizer) == expected
    off = {"tokenizer_class": "Qwen2Tokenizer", **NAMES, "pad_token": None, **said}
    assert ids("x", off) == ([32, 120] if said.get("add_prefix_space") else [120])


def test_the_file_alone(ids):
    """tokenizer.json given as a file: nothing beside it counts."""
    config = {"tokenizer_class": LLAMA, **NAMES, "additional_special_tokens": ["<a>"]}
    assert ids("<a>", config, path=lambda folder: folder / "tokenizer.json") == [60, 97, 62]
    assert ids("<a>", config) == [BEGIN, 260]


def test_what_cannot_be_done_is_said(ids):
    assert ids("hi", {"tokenizer_class": "WhisperTokenizer", **NAMES}) == HI
    assert "WhisperTokenizer" in ids.stderr and "may give other ids" in ids.stderr
    llama = {"tokenizer_class": LLAMA, **NAMES}
    assert ids("hi", llama | {"add_prefix_space": False}) == [BEGIN, *HI]
    assert "tokenizer.model" in ids.stderr
    assert ids("hi", llama | {"add_prefix_space": None}) == [BEGIN, *HI] and ids.stderr == ""
    assert ids("hi", llama | {"from_slow": True}) == [BEGIN, *HI] and "from_slow" in ids.stderr


BAD_CONFIGS = {
    "no map": ("[]", "tokenizer_config.json: is not a map"), "empty": ("", "tokenizer_config.json"),
    "cut": ('{"bos_token": ', "tokenizer_config.json"),
    "bos null": ({"bos_token": None}, "there is no bos_token"),
    "eos null": ({"eos_token": None, "add_eos_token": True}, "there is no eos_token"),
    "bos empty": ({"bos_token": ""}, "there is no bos_token"),
    "bos number": ({"bos_token": 1}, '"bos_token" must be a token'),
    "bos without content": ({"bos_token": {"lstrip": True}}, '"bos_token" must be a token'),
    "bos with space": ({"bos_token": "a b"}, "can't stand in a template"),
    "flag": ({"add_bos_token": "yes"}, '"add_bos_token" must be true or false'),
    "decoder list": ({"added_tokens_decoder": []}, '"added_tokens_decoder" must be a map'),
    "decoder key": ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "must be ids"),
    "decoder text": ({"added_tokens_decoder": {"1": "<a>"}}, "must be a map"),
    "decoder flag": ({"added_tokens_decoder": {"1": {"content": "<a>", "lstrip": 1}}}, '"lstrip"'),
    "additional": ({"additional_special_tokens": "<a>"}, '"additional_special_tokens" must be'),
    "surrogate": ('{"bos_token": "\\ud800"}', '"bos_token" must be a token'),
}


@pytest.mark.parametrize("config, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_config(ids, config, message):
    if isinstance(config, dict):
        config = {"tokenizer_class": LLAMA, **NAMES, **config}
    ids("hi", config, refused=message)


def test_every_command_takes_the_same_ids(tare, tmp_path):
    """quantize counts the token in front, and calib asks the model with it."""
    model = tiny.write_checkpoint(tmp_path / "model")
    config = {"tokenizer_class": LLAMA, **NAMES, "model_max_length": 128}
    prompts = tiny.write_prompts(tmp_path / "prompts.jsonl", ["hi", "hi"])
    for flag, tokens in ((True, 6), (False, 4)):
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": flag}))
        done = tare("quantize", model, "--out", tmp_path / "out", "--calib", prompts, "--dry-run",
                    "--no-probe")
        assert f"2 calibration samples, {tokens} tokens" in done.stdout + done.stderr, done.stderr
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None}))
    done = tare("generate", model, "hi", "--max-new-tokens", "1")
    assert done.returncode == BAD_DATA and "there is no bos_token" in done.stderr
