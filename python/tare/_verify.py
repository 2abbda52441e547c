"""Positive verification by a model of Python's: each prompt on its own, so that padding, batch size
and neighbours have no part in it. tare's own models answer in C, transformers' are called back."""
import numpy as np

from . import _native
from ._calib_sets import c_text, py_text
from ._log import logger
from ._native import ffi, lib
from .model import Model

_YES = "How can we learning machine learning: yes"
_NO = "How can we learning machine learning: no"
_NEW_TOKENS = {lib.TARE_CALIB_CONTINUE: 20, lib.TARE_CALIB_SOLVE: 256}
_LARGE = 10**20  # a model_max_length beyond it means that none is stated
# Fields of a generation_config.json that alter greedy decoding and are left out, with a warning.
_IGNORED = {"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
            "min_new_tokens": None, "bad_words_ids": None, "suppress_tokens": None,
            "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
            "sequence_bias": None, "num_beams": 1, "penalty_alpha": None, "guidance_scale": None,
            "encoder_repetition_penalty": 1.0, "exponential_decay_length_penalty": None}


def try_out(model, tokenizer):
    """TypeError unless the model takes what the tokenizer gives: a forward and one greedy token."""
    try:
        if tokenizer is None:
            raise TypeError("no tokenizer")
        if isinstance(model, Model):
            inputs = tokenizer("hello world", return_tensors="np")
            model.logits(inputs.input_ids)
            model.generate(**inputs, do_sample=False, max_new_tokens=1)
            return
        import torch
        inputs = tokenizer("hello world", return_tensors="pt", return_token_type_ids=False)
        inputs = inputs.to(model.device)
        with torch.no_grad():
            model(**inputs)
            model.generate(**inputs, do_sample=False, max_new_tokens=1)
    except Exception as error:
        logger.error("a trial of model (%s) and tokenizer (%s) failed: %s", type(model).__name__,
                     type(tokenizer).__name__, error)
        raise TypeError("Tokenizer must be matched with model.") from error


def make(mix):
    """The tare_calib_verifier of a CalibrationData: `.c` of an object that keeps it alive."""
    return (ModelVerifier if isinstance(mix.model, Model) else TransformersVerifier)(mix)


class ModelVerifier:
    """Answers with a tare model and its tokenizer, in C."""

    def __init__(self, mix):
        context = mix.model.context
        tokenizer = mix.tokenizer
        if tokenizer.context is not context:  # C wants both from one
            tokenizer = type(tokenizer)(tokenizer.name_or_path, context=context)
        self._keep = mix.model, tokenizer
        self.c = ffi.gc(_native.sized("tare_calib_verifier"), lib.tare_model_verifier_free)
        context.run(lib.tare_model_verifier_create, mix.model.handle, tokenizer.handle, self.c)


class TransformersVerifier:
    """Answers with a PreTrainedModel and its tokenizer."""

    def __init__(self, mix):
        import torch
        self.torch, self.mix, self.model, self.tokenizer = torch, mix, mix.model, mix.tokenizer
        self.generation = getattr(self.model, "generation_config", None)
        self.limit = getattr(self.model.config, "max_position_embeddings", None)
        self.choices = [self.tokenizer(text, add_special_tokens=False).input_ids[-1]
                        for text in (_YES, _NO)]
        self._warn()
        kind = dict(ffi.typeof("tare_calib_verifier").fields)["answer"].type
        self._callback = mix.context.callback(kind, self._answer)
        self.c = _native.sized("tare_calib_verifier", {"answer": self._callback})

    def _warn(self):
        odd = [name for name, plain in _IGNORED.items()
               if getattr(self.generation, name, plain) not in (plain, None)]
        if odd:
            logger.warning("generation_config has %s, which verification ignores.", ", ".join(odd))

    def _answer(self, _user, task, questions, count, answers):
        with self.torch.no_grad():
            for i in range(count):
                self._answer_one(task, questions[i], answers[i])

    def _answer_one(self, task, question, answer):
        prompt = py_text(question.prompt, question.prompt_length)
        ids = self._ids(prompt, cut=task != lib.TARE_CALIB_SOLVE)
        if self.limit is not None and ids.shape[1] > self.limit:
            answer.too_long = True
            return
        if task == lib.TARE_CALIB_CHOOSE:
            logits = self.model(input_ids=ids, attention_mask=self.torch.ones_like(ids)).logits
            logp = self.torch.log_softmax(logits[0, -1].float(), dim=-1)
            answer.yes, answer.no = (float(logp[choice]) for choice in self.choices)
            return
        if question.sample:
            out = self._sample(ids, question)
        else:
            out = self._greedy(ids, task)
        if task == lib.TARE_CALIB_CONTINUE:
            text = self.tokenizer.decode(out[ids.shape[1]:])
        else:
            text = self.tokenizer.decode(out, skip_special_tokens=True)
        raw = c_text(text)
        self.mix.context.call(lib.tare_calib_answer_text, ffi.addressof(answer), raw, len(raw))

    def _ids(self, prompt, cut):
        longest = self.tokenizer.model_max_length
        limits = ({"truncation": True, "max_length": longest}
                  if cut and longest is not None and longest < _LARGE else {})
        encoding = self.tokenizer(prompt, return_tensors="pt", **limits)
        return encoding.input_ids.to(self.model.device)

    def _ends(self, task):
        """The tokens that end a text."""
        ends = (self.tokenizer.eos_token_id if task == lib.TARE_CALIB_SOLVE else
                getattr(self.generation, "eos_token_id", None))
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def _greedy(self, ids, task):
        """The prompt's and the new ids, a list. A plain loop over forwards would do the same; the
        model's own generate() knows best how to use its cache."""
        from transformers import GenerationConfig
        penalty = getattr(self.generation, "repetition_penalty", None) or 1.0
        ends = self._ends(task)
        plain = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=_NEW_TOKENS[task],
                                 eos_token_id=ends or None, repetition_penalty=penalty,
                                 pad_token_id=ends[0] if ends else 0)
        before, self.model.generation_config = self.generation, plain
        try:
            out = self.model.generate(input_ids=ids, attention_mask=self.torch.ones_like(ids))
        finally:
            self.model.generation_config = before
        return out[0].tolist()

    def _sample(self, ids, question):
        """The same with tare's own draw: MT19937 keyed by the question's words, the first token
        whose cumulative probability exceeds u, tokens by falling probability, then rising id."""
        draw = np.random.RandomState(np.array(list(question.seed), np.uint32))
        ends, out, past = self._ends(lib.TARE_CALIB_SOLVE), ids[0].tolist(), None
        for _ in range(_NEW_TOKENS[lib.TARE_CALIB_SOLVE]):
            step = self.model(input_ids=ids, past_key_values=past, use_cache=True)
            past = step.past_key_values
            token = self._draw(step.logits[0, -1].double().cpu().numpy(), draw.random_sample(), out)
            out.append(token)
            if token in ends:
                break
            ids = ids.new_tensor([[token]])
        return out

    def _draw(self, logits, u, seen):
        get = lambda name, plain: getattr(self.generation, name, None) or plain  # noqa: E731
        penalty = get("repetition_penalty", 1.0)
        seen = np.unique(seen)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        logits = logits / get("temperature", 1.0)
        order = np.lexsort((np.arange(logits.size), -logits))
        top_k = get("top_k", 50)
        order = order[logits[order] >= logits[order[min(top_k, order.size) - 1]]]
        p = np.exp(logits[order] - logits[order[0]])
        p /= p.sum()
        kept = np.cumsum(p) - p < get("top_p", 1.0)
        kept[0] = True
        order, p = order[kept], p[kept] / p[kept].sum()
        return int(order[min(int(np.searchsorted(np.cumsum(p), u, side="right")), order.size - 1)])
