"""FAQuantizer inside a user's own PyTorch attention module: the scales of an independent numpy
computation, both layouts, dtypes of models, autograd left alone."""
import logging
import sys
import types

import numpy as np
import pytest
import torch
from conftest import TESTS

sys.path.insert(0, str(TESTS / "python"))

from test_fa_quantizer import expected_scales  # noqa: E402

from tare import FAQuantizer  # noqa: E402

CONFIG = types.SimpleNamespace(num_attention_heads=4, hidden_size=32, num_key_value_heads=2)


class Attention(torch.nn.Module):
    """Grouped attention of somebody's own, [B,H,S,D] inside, or [B,S,H,D]."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.q, self.k, self.v = (torch.nn.Linear(32, n * 8) for n in (4, 2, 2))
        self.fa_quantizer = FAQuantizer(CONFIG, logging.getLogger("test"), layout=layout)
        self.seen = []

    def forward(self, x):
        batch, length, _ = x.shape
        states = [p(x).view(batch, length, -1, 8) for p in (self.q, self.k, self.v)]
        if self.layout == "BHSD":
            states = [s.transpose(1, 2) for s in states]
        for s, kind in zip(states, "qkv"):
            assert self.fa_quantizer.quant(s, qkv=kind) is s
        heads_second = states if self.layout == "BHSD" else [s.transpose(1, 2) for s in states]
        self.seen.append([s.detach().float().numpy() for s in heads_second])
        q, k, v = heads_second
        k, v = (s.repeat_interleave(2, dim=1) for s in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("layout", ["BHSD", "BSHD"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_users_own_attention(layout, dtype):
    torch.manual_seed(0)
    module = Attention(layout).to(dtype)
    module.fa_quantizer.enable_calibration()
    for length in (400, 7):
        module(torch.randn(2, length, 32, dtype=dtype)).float().sum().backward()
    module.fa_quantizer.disable_calibration()
    scales, offsets = module.fa_quantizer.export_quant_params()
    for i, kind in enumerate("qkv"):
        wide = expected_scales([s[i] for s in module.seen], kind)
        assert scales[i].dtype == dtype and offsets[i].dtype == torch.int8
        assert torch.equal(scales[i], torch.from_numpy(wide).to(dtype))
        assert np.asarray(offsets[i]).any() == False  # noqa: E712
    assert module.q.weight.grad is not None
