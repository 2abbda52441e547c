"""Tokenizers with the interface of transformers' fast ones; encoding and decoding happen in C."""
import json
import os
import pathlib

import numpy as np

from . import _arrays, _chat
from ._checks import check_type
from ._context import NEW, shared_context
from ._devices import is_accelerator
from ._log import logger
from ._native import encode, ffi, lib
from ._samples import as_array
from .config import read_json

_VERY_LARGE = int(1e30)  # model_max_length of a checkpoint that states none, as in transformers
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
            "mask_token")
_WITHOUT_EFFECT = ("trust_remote_code", "local_files_only", "use_fast", "legacy", "cache_dir",
                   "token", "config", "revision")
# decode() with clean_up_tokenization_spaces
_CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
             (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


class Encoding(dict):
    """What a tokenizer's call gives: input_ids, attention_mask, as keys and as attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}") from None

    data = property(lambda self: dict(self))

    def to(self, device, *_args, **_kwargs):
        if is_accelerator(device):
            logger.warning("encoding.to(%r): tare computes on the CPU.", str(device))
        return self


class Tokenizer:
    """The tokenizer of a checkpoint folder: its tokenizer.json, and what its tokenizer_config.json
    says of the class, of tokens, padding and chat. Of a tokenizer.json given as a file: that alone."""

    def __init__(self, path, *, padding_side=None, pad_token=None, model_max_length=None,
                 context=None, add_bos_token=None, add_eos_token=None):
        self.name_or_path = os.fspath(path)
        folder = pathlib.Path(self.name_or_path)
        is_folder = not folder.is_file()
        settings = {name: value for name, value in (
            ("add_bos_token", add_bos_token), ("add_eos_token", add_eos_token),
            ("pad_token", pad_token if is_folder else None)) if value is not None}
        self.context = context or shared_context()
        self.handle = self.context.create(
            "tare_tokenizer", lib.tare_tokenizer_open_with, self.context.handle,
            encode(self.name_or_path), encode(json.dumps(settings)) if settings else ffi.NULL, NEW)
        config = read_json(folder, "tokenizer_config.json") if is_folder else {}
        self.init_kwargs = config
        for name in _SPECIAL:
            token = lib.tare_tokenizer_special_token(self.handle, encode(name))
            setattr(self, name, ffi.string(token).decode() if token else None)
        if pad_token is not None:
            self.pad_token = pad_token
        self.padding_side = padding_side or config.get("padding_side") or "right"
        self.model_max_length = model_max_length or config.get("model_max_length") or _VERY_LARGE
        self.clean_up_tokenization_spaces = config.get("clean_up_tokenization_spaces", False)
        self.chat_template = _chat.find_template(folder, config) if is_folder else None

    def __repr__(self):
        return f"<tare.Tokenizer of {self.name_or_path}>"

    def __len__(self):
        return self.vocab_size

    # ---- ids of tokens

    vocab_size = property(lambda self: lib.tare_tokenizer_vocab_size(self.handle))

    def _id_of(self, token):
        ids = self._encode(token, False) if token is not None else []
        return int(ids[0]) if len(ids) == 1 else None

    bos_token_id = property(lambda self: self._id_of(self.bos_token))
    eos_token_id = property(lambda self: self._id_of(self.eos_token))
    unk_token_id = property(lambda self: self._id_of(self.unk_token))
    pad_token_id = property(lambda self: self._id_of(self.pad_token))

    def convert_tokens_to_ids(self, tokens):
        """The id of a token or of each of a list; None for what is no single token."""
        return self._id_of(tokens) if isinstance(tokens, str) else [self._id_of(t) for t in tokens]

    # ---- text to ids

    def _encode(self, text, add_special_tokens):
        raw = text.encode("utf-8", "surrogatepass")
        ids, count = ffi.new("uint32_t **"), ffi.new("size_t *")
        self.context.call(lib.tare_tokenizer_encode, self.handle, raw, len(raw), add_special_tokens,
                          ids, count)
        try:
            buffer = ffi.buffer(ids[0], count[0] * 4) if count[0] else b""
            return np.frombuffer(bytes(buffer), np.uint32)
        finally:
            lib.tare_free(self.context.handle, ids[0])

    def encode(self, text, add_special_tokens=True):
        """Token ids of one text, a list."""
        check_type(text, str, "text")
        return self._encode(text, add_special_tokens).tolist()

    def __call__(self, text, padding=False, truncation=False, max_length=None, return_tensors=None,
                 add_special_tokens=True, return_attention_mask=True, return_token_type_ids=None,
                 padding_side=None):
        """input_ids and attention_mask of a text or a list of texts.

        padding: False, True or "longest", "max_length". truncation: to max_length, else to
        model_max_length. return_tensors: None (lists), "np", "pt". return_token_type_ids is
        accepted; there are none."""
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        for i, one in enumerate(texts):
            check_type(one, str, "text" if single else f"text[{i}]")
        rows = [self._encode(one, add_special_tokens) for one in texts]
        limit = max_length or self.model_max_length
        if truncation:
            rows = [row[:limit] for row in rows]
        masks = [np.ones(row.size, np.int64) for row in rows]
        if padding not in (False, None, "do_not_pad"):
            width = limit if padding == "max_length" else max((r.size for r in rows), default=0)
            rows, masks = self._padded(rows, masks, width, padding_side or self.padding_side)
        return self._encoding(rows, masks, single, return_tensors, return_attention_mask)

    def _padded(self, rows, masks, width, side):
        if self.pad_token_id is None and any(row.size < width for row in rows):
            raise ValueError("padding needs a pad_token: tokenizer.pad_token = tokenizer.eos_token")

        def pad(row, value):
            fill = np.full(max(0, width - row.size), value, row.dtype)
            return np.concatenate([fill, row] if side == "left" else [row, fill])
        return ([pad(r, self.pad_token_id or 0) for r in rows], [pad(m, 0) for m in masks])

    @staticmethod
    def _encoding(rows, masks, single, return_tensors, return_attention_mask):
        out = Encoding(input_ids=rows)
        if return_attention_mask:
            out["attention_mask"] = masks
        if return_tensors is None:
            lists = {k: [row.tolist() for row in v] for k, v in out.items()}
            return Encoding({k: v[0] for k, v in lists.items()} if single else lists)
        if return_tensors not in ("np", "pt"):
            raise ValueError(f"return_tensors {return_tensors!r} is not known; possible: 'np', "
                             "'pt'")
        if len({row.size for row in rows}) > 1:
            raise ValueError("texts of unequal length need padding=True to become one tensor")
        arrays = {k: np.stack(v).astype(np.int64) if v else np.empty((0, 0), np.int64)
                  for k, v in out.items()}
        if return_tensors == "pt":
            arrays = {k: _arrays.to_torch(v) for k, v in arrays.items()}
        return Encoding(arrays)

    # ---- ids to text

    def decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        """The text of token ids."""
        if isinstance(token_ids, (int, np.integer)):
            token_ids = [token_ids]
        ids = as_array(token_ids, "token_ids")
        ids = _arrays.one_sequence(ids.reshape(-1) if ids.ndim == 0 else ids, "token_ids")
        text, length = ffi.new("char **"), ffi.new("size_t *")
        self.context.call(lib.tare_tokenizer_decode, self.handle, _arrays.u32(ids), ids.size,
                          skip_special_tokens, text, length)
        try:
            out = bytes(ffi.buffer(text[0], length[0])).decode("utf-8", "replace")
        finally:
            lib.tare_free(self.context.handle, text[0])
        clean = (self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None
                 else clean_up_tokenization_spaces)
        for old, new in _CLEAN_UP if clean else ():
            out = out.replace(old, new)
        return out

    def batch_decode(self, sequences, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        """The text of each row of token ids."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces)
                for ids in sequences]

    # ---- chat

    def apply_chat_template(self, conversation, tools=None, documents=None, chat_template=None,
                            add_generation_prompt=False, tokenize=True, padding=False,
                            truncation=False, max_length=None, return_tensors=None,
                            return_dict=False, **template_values):
        """The prompt of a list of {"role", "content"} messages, or of a list of such lists, as ids
        or (tokenize=False) as text. The template runs in a sandbox, with a time limit."""
        template = self.chat_template if chat_template is None else chat_template
        if isinstance(template, dict):
            template = template.get("tool_use" if tools and "tool_use" in template else "default")
        if template is None:
            raise ValueError(f"{self.name_or_path} has no chat template; give chat_template=…")
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        special = {name: getattr(self, name) for name in _SPECIAL
                   if getattr(self, name) is not None}
        texts = [_chat.render(template, {**special, "messages": messages, "tools": tools,
                                         "documents": documents,
                                         "add_generation_prompt": add_generation_prompt,
                                         **template_values})
                 for messages in (conversation if batched else [conversation])]
        if not tokenize:
            return texts if batched else texts[0]
        out = self(texts if batched or return_tensors else texts[0], padding=padding,
                   truncation=truncation, max_length=max_length, return_tensors=return_tensors,
                   add_special_tokens=False)
        return out if return_dict else out["input_ids"]


class AutoTokenizer:
    """transformers' name, for a tare.Tokenizer."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, padding_side=None, pad_token=None,
                        model_max_length=None, add_bos_token=None, add_eos_token=None, **others):
        unknown = [name for name in others if name not in _WITHOUT_EFFECT]
        if unknown:
            raise TypeError(f"from_pretrained() of tare has no argument {unknown[0]!r}")
        return Tokenizer(pretrained_model_name_or_path, padding_side=padding_side,
                         pad_token=pad_token, model_max_length=model_max_length,
                         add_bos_token=add_bos_token, add_eos_token=add_eos_token)
