"""Greedy text of SmolLM2-135M-Instruct against transformers in FP32; chat prompts against Jinja.

Greedy text is checked by one forward pass of transformers over prompt and text: at every position
its most probable token must be the next one. That is greedy decoding by induction, and shows the
margin where the two differ. TARE_GENERATE_PROMPTS sets how many prompts go through it.
"""
import ctypes
import json
import os
import pathlib

import jinja2
import jinja2.sandbox
import pytest
import torch
from libtare import TareError
from test_smollm2 import MODEL, prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = int(os.environ.get("TARE_GENERATE_PROMPTS", "12"))
NEW = 64
NO_EOS = {"eos_ids": (ctypes.c_uint32 * 1)(), "num_eos": 0}


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32,
                                                attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ids():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return [tokenizer(text).input_ids for text in list(prompts())[:PROMPTS]]


def first_difference(reference, prompt, text):
    """None, or (position, margin of transformers' choice over ours)."""
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + text])).logits[0, len(prompt) - 1:-1]
    for i, token in enumerate(text):
        best = int(logits[i].argmax())
        if best != token:
            return i, (logits[i, best] - logits[i, token]).item()
    return None


def test_greedy(library, reference, ids, capsys):
    with library.model(MODEL) as model:
        texts = model.generate(ids, max_new_tokens=NEW, **NO_EOS)
        assert texts[:5] == model.generate(ids[:5], max_new_tokens=NEW, batch=1, **NO_EOS)
    differences = [first_difference(reference, p, t) for p, t in zip(ids, texts)]
    with capsys.disabled():
        print(f"\n{len(ids)} prompts, {NEW} tokens: "
              f"{sum(d is None for d in differences)} as transformers; "
              f"differences: {[d for d in differences if d]}")
    assert all(len(t) == NEW for t in texts)
    assert all(d is None or d[1] < 2e-4 for d in differences)


def test_generate_call(library, reference, ids):
    """The same through transformers' own generate, where a text may end."""
    ids = sorted(ids, key=len)[:2]
    with library.model(MODEL) as model:
        texts = model.generate(ids, max_new_tokens=12)
        penalized = model.generate(ids, max_new_tokens=12, repetition_penalty=1.3)
    for prompt, text, other in zip(ids, texts, penalized):
        given = {"inputs": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)),
                 "max_new_tokens": 12, "do_sample": False}
        assert reference.generate(**given)[0, len(prompt):].tolist() == text
        assert reference.generate(**given, repetition_penalty=1.3)[0, len(prompt):].tolist() == other


def test_last_logprobs(library, reference, ids):
    tokens = [9904, 787, 0]
    with library.model(MODEL) as model:
        ours = model.last_logprobs(ids[:4], tokens)
    for prompt, row in zip(ids, ours):
        with torch.no_grad():
            last = torch.log_softmax(reference(torch.tensor([prompt])).logits[0, -1], -1)
        assert (last[tokens] - torch.from_numpy(row)).abs().max() < 5e-4


# ---- chat prompts

TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
CUE = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SYSTEM = ("{{% if loop.first and messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\n{}"
          "<|im_end|>\n' }}}}{{% endif %}}")
LOOP = "{% for message in messages %}"
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 "
    "% 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/"
    "assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message"
    "['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + "
    "eos_token@}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}")
TEMPLATES = {
    "chatml": LOOP + TURN + CUE,
    "chatml-defined": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = "
                      "false %}{% endif %}" + LOOP + TURN + CUE,
    "smollm2": LOOP + SYSTEM.format("You are a helpful AI assistant named SmolLM, trained by "
                                    "Hugging Face") + TURN + CUE,
    "qwen2": LOOP + SYSTEM.format("You are a helpful assistant.") + TURN + CUE,
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
              " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message"
              "['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = "
              "bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if "
              "add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
              "{% endif %}",
    "mistral-v0.1": MISTRAL.replace("@", " + ' ' "),
    "mistral-v0.2": MISTRAL.replace("@", ""),
}
# Longer ones of published checkpoints (Llama-3.1, Qwen2.5), NAME.jinja each, where somebody has
# them.
for path in sorted(pathlib.Path(
        os.environ.get("TARE_CHAT_TEMPLATES", "/nonexistent")).glob("*.jinja")):
    TEMPLATES[path.stem] = path.read_text(encoding="utf-8")

CHATS = [
    [("user", "Hi")],
    [("user", "  a\u3000\n"), ("assistant", " b <|x|>\t"), ("user", "{{ c }} ü 你好\x1f")],
    [("system", " Be brief.\n"), ("user", "")],
    [("system", ""), ("user", "x"), ("assistant", ""), ("user", "\n\n")],
]


def render(template, messages):
    def refuse(message):
        raise jinja2.TemplateError(message)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat(name, library, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"chat_template": TEMPLATES[name], "bos_token": {"content": "<s>"}, "eos_token": "</s>"}))
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        try:
            expected = render(TEMPLATES[name], messages)
        except jinja2.TemplateError:
            with pytest.raises(TareError, match="user and assistant in turn"):
                library.chat_prompt(tmp_path, messages)
            continue
        assert library.chat_prompt(tmp_path, messages) == expected


def test_chat_of_the_checkpoint(library):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "user", "content": "What is a tare?"}]
    assert library.chat_prompt(MODEL, messages) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True)
