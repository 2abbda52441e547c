"""tare generate: the text on stdout, settings, limits, interruption."""
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import TARE_BIN, run_tare
from libtare import TareError

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
          "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny.write_checkpoint(folder)
    return folder


def generate(model, prompt, *flags):
    done = run_tare("generate", model, prompt, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_logits(library, folder, prompt, count):
    """Ids of greedy text, from whole forward passes."""
    ids, new = list(prompt.encode()), []
    with library.model(folder) as model, library.tokenizer(folder) as tokenizer:
        ids = tokenizer.encode(prompt, True)
        for _ in range(count):
            new.append(int(model.logits(ids + new)[-1].argmax()))
            if new[-1] == tiny.CONFIG["eos_token_id"]:
                break
    return new


def test_greedy_json(model, library):
    out = json.loads(generate(model, "The ferry", "--max-new-tokens", 12, "--json"))
    assert out["ids"] == by_logits(library, model, "The ferry", 12)
    assert out["finish"] in ("length", "eos")
    with library.tokenizer(model) as tokenizer:
        assert out["prompt_tokens"] == len(tokenizer.encode("The ferry", True))


def test_stream_is_the_text(model):
    flags = ["The ferry", "--max-new-tokens", 30, "--temperature", 1.5, "--seed", 4]
    text = json.loads(generate(model, *flags, "--json"))["text"]
    raw = subprocess.run([TARE_BIN, "generate", model, *map(str, flags)], capture_output=True,
                         check=True).stdout
    assert raw == text.encode() + b"\n"


def always(folder, text):
    """A checkpoint that says the bytes of `text` in turn: each token's embedding is a unit vector,
    layers add nothing, and the head's row of the next byte is the unit vector of this one."""
    config = {**tiny.CONFIG, "hidden_size": 32, "num_hidden_layers": 1,
              "tie_word_embeddings": False}
    tensors = {n: ("BF16", np.full(s, float(len(s) == 1), np.float32) * (len(s) == 1))
               for n, s in tiny.tensor_shapes(config).items()}
    vocab, h = config["vocab_size"], config["hidden_size"]
    embed, head = np.zeros((vocab, h), np.float32), np.zeros((vocab, h), np.float32)
    raw = text.encode()
    assert len(set(raw)) == len(raw) < h
    for i, byte in enumerate(raw):
        embed[byte, i] = 1
        head[raw[i + 1] if i + 1 < len(raw) else config["eos_token_id"], i] = 1
    tensors["model.embed_tokens.weight"] = ("BF16", embed)
    tensors["lm_head.weight"] = ("BF16", head)
    tiny.write_checkpoint(folder, tensors, num_hidden_layers=1, tie_word_embeddings=False)
    return folder


def test_characters_come_whole(tmp_path):
    """Bytes of a character are different tokens: nothing of it is written before the last."""
    folder = always(tmp_path / "model", "aé中🙂b")
    process = subprocess.Popen([TARE_BIN, "generate", folder, "a"], stdout=subprocess.PIPE)
    pieces = []
    while piece := os.read(process.stdout.fileno(), 4096):
        pieces.append(piece.decode())  # each piece is UTF-8 by itself
    assert process.wait() == 0
    assert "".join(pieces) == "é中🙂b\n"
    # A text may end inside a character.
    assert generate(folder, "a", "--max-new-tokens", 3) == "é\ufffd\n"


def test_end_of_text(tmp_path):
    folder = always(tmp_path / "model", "abc")
    out = json.loads(generate(folder, "a", "--json"))
    assert (out["text"], out["finish"], out["ids"]) == ("bc", "eos", [98, 99, 257])
    assert generate(folder, "a", "--max-new-tokens", 2**64 - 1) == "bc\n"
    nul = always(tmp_path / "nul", "a\0b")
    assert json.loads(generate(nul, "a", "--json"))["text"] == "\0b"
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 98]}')
    out = json.loads(generate(folder, "a", "--json"))
    assert (out["text"], out["finish"]) == ("b", "eos")


def test_same_bytes(model):
    flags = ["x y", "--max-new-tokens", 20, "--top-p", 0.9, "--json"]
    expected = generate(model, *flags)
    assert generate(model, *flags, "--threads", 3) == expected
    assert generate(model, *flags, "--max-memory", "cpu=64MiB") == expected
    assert generate(model, *flags, "--seed", 0) == expected
    assert generate(model, *flags, "--seed", 1) != expected
    greedy = generate(model, "x y", "--max-new-tokens", 20, "--json")
    assert generate(model, "x y", "--max-new-tokens", 20, "--temperature", 0, "--json") == greedy
    assert generate(model, "x y", "--max-new-tokens", 20, "--top-k", 1, "--json") == greedy
    for cold in ("1e-6", "1e-45", "1e-300"):
        flags = ["--max-new-tokens", 20, "--temperature", cold, "--json"]
        assert generate(model, "x y", *flags) == greedy


def test_context(model):
    """128 positions."""
    done = run_tare("generate", model, "a" * 126, "--json", "--temperature", 1)
    assert json.loads(done.stdout)["finish"] in ("context", "eos")
    assert len(json.loads(done.stdout)["ids"]) <= 3
    for flags in ([], ["--json"]):
        done = run_tare("generate", model, "a" * 129, *flags)
        assert done.returncode == 1
        assert "129 tokens, more than the model's context" in done.stderr
        assert bool(flags) == ('"finish": "too_long"' in done.stdout) == bool(done.stdout)


def test_chat(model, library):
    config = json.loads((model / "tokenizer_config.json").read_text())
    done = run_tare("generate", model, "Hi", "--chat")
    assert done.returncode == 1 and "there is no chat_template" in done.stderr
    for text in (CHATML, CHATML + "\n"):
        (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": text}))
        prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert library.chat_prompt(model, [{"role": "user", "content": "Hi"}]) == prompt
        assert generate(model, "Hi", "--chat", "--json") == generate(model, prompt, "--json")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert library.chat_prompt(model, [{"role": "user", "content": "Hi"}]) == prompt
    # Another text is refused, whatever it would print; a file of its own wins.
    (model / "chat_template.jinja").write_text(CHATML + " ")
    done = run_tare("generate", model, "Hi", "--chat")
    assert done.returncode == 1
    assert "is not run" in done.stderr and "ChatML, SmolLM2, Qwen2, Qwen2.5, Llama-3" in done.stderr
    with pytest.raises(TareError, match="the role tool is none of"):
        library.chat_prompt(model, [{"role": "tool", "content": "Hi"}])
    with pytest.raises(TareError, match="needs a message"):
        library.chat_prompt(model, [])


@pytest.mark.parametrize("flags,part", [
    (["--temperature", "-1"], "--temperature"), (["--temperature", "hot"], "--temperature"),
    (["--top-k", "1.5"], "--top-k"), (["--top-p", "2"], "top_p"), (["--top-p", "0"], "top_p"),
    (["--seed", "x"], "--seed"), (["--max-new-tokens", "0"], "--max-new-tokens"),
    (["--max-memory", "8"], "8"), (["--max-memory", "cpu=1MiB"], "too small"),
    (["more"], "unexpected argument")])
def test_wrong_arguments(model, flags, part):
    done = run_tare("generate", model, "x", *flags)
    assert done.returncode == 2 and part in done.stderr and done.stdout == ""


def test_bad_model(tmp_path):
    done = run_tare("generate", tmp_path / "none", "x")
    assert done.returncode == 1 and "none" in done.stderr


def test_interrupt(tmp_path):
    """A text that does not end by itself: two bytes in turn, far from the end of the context."""
    folder = always(tmp_path / "model", "ab")
    tensors = {n: (t.tag, t.data.copy()) for n, t in
               tensor_file.read(folder / "model.safetensors").items()}
    head = tensors["lm_head.weight"][1]
    head[[97, 257]] = head[[257, 97]]
    tensor_file.write(folder / "model.safetensors", tensors)
    tiny.write_config(folder, num_hidden_layers=1, tie_word_embeddings=False,
                      max_position_embeddings=1 << 20)
    process = subprocess.Popen([TARE_BIN, "generate", folder, "a", "--max-new-tokens", "1000000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert os.read(process.stdout.fileno(), 1)[:1] == b"b"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"cancelled" in err.lower()
    assert out.strip(b"\n").replace(b"ab", b"") in (b"", b"a", b"b")
    assert time.monotonic() - begin < 30
