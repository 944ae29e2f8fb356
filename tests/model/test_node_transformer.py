"""Sequences of fixed length: an instance sees its own tokens, of these the keys that exist, and nothing else."""

from __future__ import annotations

import pytest
import torch

from transfiner_refine.model.node_transformer import SequenceEncoder


@pytest.fixture
def encoder() -> SequenceEncoder:
    torch.manual_seed(0)
    return SequenceEncoder(width=32, heads=4, feedforward=64, layers=2).eval()


def some_valid(batch: int, keys: int) -> torch.Tensor:
    """[batch, keys] bool; the first key of every sequence exists, as the context tokens do."""
    valid = torch.rand(batch, keys, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[:, 0] = True
    return valid


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [20, 12])
@torch.no_grad()
def test_an_instance_is_encoded_the_same_alone_and_in_a_batch(
    encoder: SequenceEncoder, keys: int, masked: bool
) -> None:
    queries = torch.randn(3, 20, 32)
    valid = some_valid(3, keys) if masked else None
    together = encoder(queries, keys, valid)
    for i in range(3):
        one = slice(i, i + 1)
        alone = encoder(queries[one], keys, None if valid is None else valid[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_beyond_the_keys_are_not_attended_to(encoder: SequenceEncoder) -> None:
    queries = torch.randn(1, 10, 32)
    changed = queries.clone()
    changed[:, 9] = torch.randn(32)
    before, after = (encoder(q, 6) for q in (queries, changed))
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


@torch.no_grad()
def test_keys_that_do_not_exist_have_no_influence(encoder: SequenceEncoder) -> None:
    valid = some_valid(2, 12)
    queries = torch.randn(2, 18, 32)
    changed = queries.clone()
    changed[:, :12][~valid] = 50 * torch.randn(int((~valid).sum()), 32)
    exists = torch.cat((valid, torch.ones(2, 6, dtype=torch.bool)), 1)
    before, after = (encoder(q, 12, valid) for q in (queries, changed))
    assert torch.equal(before[exists], after[exists])
    assert not torch.allclose(encoder(queries, 12)[exists], encoder(changed, 12)[exists])


@torch.no_grad()
def test_a_sequence_with_places_left_free_is_encoded_like_one_without_them(encoder: SequenceEncoder) -> None:
    valid = some_valid(1, 12)
    queries = torch.randn(1, 18, 32)
    exists = torch.cat((valid, torch.ones(1, 6, dtype=torch.bool)), 1)
    with_places = encoder(queries, 12, valid)[exists]
    without = encoder(queries[exists][None], int(valid.sum()))[0]
    torch.testing.assert_close(with_places, without, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_where_all_keys_exist_the_mask_changes_nothing(encoder: SequenceEncoder) -> None:
    queries = torch.randn(2, 15, 32)
    everywhere = torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(encoder(queries, 9, everywhere), encoder(queries, 9))


def test_training_computes_the_same_attention_as_inference(encoder: SequenceEncoder) -> None:
    queries = torch.randn(2, 10, 32)
    trained = encoder(queries, 10)
    with torch.no_grad():
        inferred = encoder(queries, 10)
    torch.testing.assert_close(trained.detach(), inferred, atol=1e-5, rtol=1e-5)


@pytest.fixture
def reference(encoder: SequenceEncoder) -> torch.nn.TransformerEncoder:
    """PyTorch's own encoder with the same weights."""
    theirs = torch.nn.TransformerEncoder(
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
    state = {}
    for name in theirs.state_dict():
        parts = name.split(".", 2)
        own = f"layers.{parts[1]}.{names.get(parts[2], parts[2])}" if parts[0] == "layers" else name
        state[name] = ours[own]
    theirs.load_state_dict(state)
    return theirs


@torch.no_grad()
def test_the_encoder_is_pytorchs_pre_norm_transformer_where_every_token_is_a_key(
    encoder: SequenceEncoder, reference: torch.nn.TransformerEncoder
) -> None:
    queries = torch.randn(2, 15, 32)
    torch.testing.assert_close(encoder(queries, 15), reference(queries), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_places_without_a_node_are_pytorchs_key_padding(
    encoder: SequenceEncoder, reference: torch.nn.TransformerEncoder
) -> None:
    queries, valid = torch.randn(2, 15, 32), some_valid(2, 15)
    theirs = reference(queries, src_key_padding_mask=~valid)
    torch.testing.assert_close(encoder(queries, 15, valid)[valid], theirs[valid], atol=1e-5, rtol=1e-5)
