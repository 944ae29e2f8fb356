"""Ragged sequences: an instance sees its own tokens and nothing else."""

from __future__ import annotations

import pytest
import torch

from transfiner_refine.model.sequence_encoder import SequenceEncoder, pack


@pytest.fixture
def encoder() -> SequenceEncoder:
    torch.manual_seed(0)
    return SequenceEncoder(width=32, heads=4, feedforward=64, layers=2).eval()


def test_every_token_gets_a_slot_of_its_own_in_its_own_sequence() -> None:
    instance = torch.tensor([2, 0, 0, 2, 2, 1])
    slot, counts, longest = pack(instance, 4)
    assert longest == 3
    assert counts.tolist() == [2, 1, 3, 0]
    assert torch.equal(slot // longest, instance)
    assert len(set(slot.tolist())) == 6


@pytest.mark.parametrize("keys", [None, 12])
@torch.no_grad()
def test_an_instance_is_encoded_the_same_alone_and_in_a_batch(
    encoder: SequenceEncoder, keys: int | None
) -> None:
    # tokens of two "levels" per instance, the first level being the keys
    instance = torch.tensor([0] * 5 + [1] * 4 + [2] * 3 + [0] * 7 + [1] * 1 + [2] * 9)
    queries = torch.randn(len(instance), 32)
    together = encoder(queries, instance, 3, keys=keys)
    for i in range(3):
        own = instance == i
        own_keys = None if keys is None else int(own[:keys].sum())
        alone = encoder(queries[own], torch.zeros(int(own.sum()), dtype=torch.long), 1, keys=own_keys)
        torch.testing.assert_close(together[own], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_beyond_the_keys_are_not_attended_to(encoder: SequenceEncoder) -> None:
    queries, instance = torch.randn(10, 32), torch.zeros(10, dtype=torch.long)
    changed = queries.clone()
    changed[9] = torch.randn(32)
    before, after = (encoder(q, instance, 1, keys=6) for q in (queries, changed))
    torch.testing.assert_close(before[:9], after[:9])
    assert not torch.allclose(before[9], after[9])


def test_training_on_a_cpu_computes_the_same_attention_as_inference(encoder: SequenceEncoder) -> None:
    queries, instance = torch.randn(20, 32), torch.arange(2).repeat_interleave(10)
    trained = encoder(queries, instance, 2)
    with torch.no_grad():
        inferred = encoder(queries, instance, 2)
    torch.testing.assert_close(trained.detach(), inferred, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_encoder_is_pytorchs_pre_norm_transformer_where_every_token_is_a_key(
    encoder: SequenceEncoder,
) -> None:
    reference = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True),
        2,
        norm=torch.nn.LayerNorm(32),
        enable_nested_tensor=False,
    ).eval()
    names = {
        "self_attn.in_proj_weight": "qkv.weight",
        "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "project.weight",
        "self_attn.out_proj.bias": "project.bias",
        "linear1.weight": "widen.weight",
        "linear1.bias": "widen.bias",
        "linear2.weight": "narrow.weight",
        "linear2.bias": "narrow.bias",
    }
    ours = encoder.state_dict()
    theirs = {}
    for name in reference.state_dict():
        parts = name.split(".", 2)
        own = f"layers.{parts[1]}.{names.get(parts[2], parts[2])}" if parts[0] == "layers" else name
        theirs[name] = ours[own]
    reference.load_state_dict(theirs)
    queries = torch.randn(2, 15, 32)
    flat = encoder(queries.flatten(0, 1), torch.arange(2).repeat_interleave(15), 2)
    torch.testing.assert_close(flat.view(2, 15, 32), reference(queries), atol=1e-5, rtol=1e-5)
