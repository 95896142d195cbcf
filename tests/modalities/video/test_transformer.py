"""The transformer against Wan's published names, sizes and numbers."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.blocks import Attention
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.masks import chunk_causal, teacher_forcing
from fewstep.modalities.video.rotary import RotaryEmbedding, rotate
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

MakeNetwork = Callable[..., VideoTransformer]

WAN_1_3B = TransformerConfig()
WAN_14B = TransformerConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40)


def wan_manifest(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original Wan 2.1 text-to-video checkpoints."""
    d, ffn = config.dim, config.ffn_dim

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    names: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (d, 16, 1, 2, 2),
        "patch_embedding.bias": (d,),
        **linear("text_embedding.0", 4096, d),
        **linear("text_embedding.2", d, d),
        **linear("time_embedding.0", 256, d),
        **linear("time_embedding.2", d, d),
        **linear("time_projection.1", d, 6 * d),
        **linear("head.head", d, 64),
        "head.modulation": (1, 2, d),
    }
    for block in (f"blocks.{i}" for i in range(config.num_layers)):
        names[f"{block}.modulation"] = (1, 6, d)
        names |= {f"{block}.norm3.weight": (d,), f"{block}.norm3.bias": (d,)}
        for layer in (f"{block}.self_attn", f"{block}.cross_attn"):
            for projection in "qkvo":
                names |= linear(f"{layer}.{projection}", d, d)
            names |= {f"{layer}.norm_q.weight": (d,), f"{layer}.norm_k.weight": (d,)}
        names |= linear(f"{block}.ffn.0", d, ffn) | linear(f"{block}.ffn.2", ffn, d)
    return names


@pytest.mark.parametrize(
    ("config", "parameters", "keys"),
    [(WAN_1_3B, 1_418_996_800, 825), (WAN_14B, 14_288_491_584, 1095)],
    ids=["1.3B", "14B"],
)
def test_the_weights_are_those_of_wan(config: TransformerConfig, parameters: int, keys: int) -> None:
    with torch.device("meta"):
        network = VideoTransformer(config)
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert found == wan_manifest(config)
    assert len(found) == keys
    assert sum(p.numel() for p in network.parameters()) == parameters


# Original name -> name in diffusers' WanTransformer3DModel. Its norm2 is Wan's norm3, the affine one.
TO_DIFFUSERS = (
    (r"time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"time_projection\.1\.", "condition_embedder.time_proj."),
    (r"head\.modulation", "scale_shift_table"),
    (r"head\.head\.", "proj_out."),
    (r"(blocks\.\d+\.)modulation", r"\1scale_shift_table"),
    (r"(blocks\.\d+\.)norm3\.", r"\1norm2."),
    (r"(blocks\.\d+\.)ffn\.0\.", r"\1ffn.net.0.proj."),
    (r"(blocks\.\d+\.)ffn\.2\.", r"\1ffn.net.2."),
    (r"(blocks\.\d+\.)self_attn\.([qkv])\.", r"\1attn1.to_\2."),
    (r"(blocks\.\d+\.)cross_attn\.([qkv])\.", r"\1attn2.to_\2."),
    (r"(blocks\.\d+\.)self_attn\.o\.", r"\1attn1.to_out.0."),
    (r"(blocks\.\d+\.)cross_attn\.o\.", r"\1attn2.to_out.0."),
    (r"(blocks\.\d+\.)self_attn\.(norm_[qk])\.", r"\1attn1.\2."),
    (r"(blocks\.\d+\.)cross_attn\.(norm_[qk])\.", r"\1attn2.\2."),
)


def diffusers_name(name: str) -> str:
    for pattern, replacement in TO_DIFFUSERS:
        if re.match(pattern, name):
            return re.sub("^" + pattern, replacement, name)
    return name


@pytest.mark.parametrize("head_dim", [12, 32])
def test_numbers_agree_with_diffusers(make_network: MakeNetwork, head_dim: int) -> None:
    module = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    ours = make_network(dtype=torch.float32, dim=4 * head_dim)
    theirs = module.WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=96,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()
    renamed = {diffusers_name(name): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(renamed)  # strict: the map is one to one

    x_t, text = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 5, 8)
    text[:, 3:] = 0.0  # padding is attended to, unmasked
    t = torch.tensor([0.25, 0.9375])
    with torch.no_grad():
        expected = theirs(x_t.transpose(1, 2), 1000 * t, text, return_dict=False)[0].transpose(1, 2)
        found = ours(x_t, t, text)
    assert expected.std() > 0.1
    # float32 through two layers; observed 1e-6
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_of_the_text_is_attended_to(make_network: MakeNetwork) -> None:
    network = make_network()
    x_t, t, text = clip(2), torch.tensor([0.5]).double(), torch.randn(1, 3, 8).double()
    padded = torch.cat([text, torch.zeros(1, 2, 8).double()], dim=1)
    assert (network(x_t, t, padded) - network(x_t, t, text)).abs().max() > 1e-3


def clip(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 4, 4, 6, dtype=torch.float64)


def words(*leading: int) -> Tensor:
    return torch.randn(*leading, 3, 8, dtype=torch.float64)


def test_a_fresh_network_predicts_the_same_velocity_everywhere() -> None:
    network = VideoTransformer(
        TransformerConfig(dim=24, ffn_dim=32, num_layers=1, num_heads=2, channels=4, freq_dim=8, text_dim=8)
    )
    first, second = (network(torch.randn(1, 2, 4, 4, 6), torch.rand(1), torch.randn(1, 3, 8)) for _ in "12")
    torch.testing.assert_close(first, second, atol=0.0, rtol=0.0)


def test_half_the_head_goes_to_frames_rows_and_columns_as_in_wan() -> None:
    assert RotaryEmbedding(128).sizes == (22, 21, 21)
    assert RotaryEmbedding(12).sizes == (2, 2, 2)


def test_rotation_turns_interleaved_pairs_by_the_position_along_each_axis() -> None:
    rotation = RotaryEmbedding(12)(range(3, 5), 2, 3, dtype=torch.float64, device=torch.device("cpu"))
    x = torch.randn(1, 12, 1, 12, dtype=torch.float64)
    found = rotate(x, rotation)
    token = 0
    for frame in (3, 4):
        for row in (0, 1):
            for column in (0, 1, 2):
                for pair, angle in enumerate(
                    position * 10_000.0 ** (-j / 2) for position in (frame, row, column) for j in (0, 1)
                ):
                    a, b = x[0, token, 0, 2 * pair : 2 * pair + 2]
                    c, s = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
                    expected = torch.stack([a * c - b * s, a * s + b * c])
                    torch.testing.assert_close(found[0, token, 0, 2 * pair : 2 * pair + 2], expected)
                token += 1


@pytest.mark.parametrize("shift", [1, 9, 500])
def test_logits_depend_on_relative_positions_only(shift: int) -> None:
    rope = RotaryEmbedding(12)

    def logits(first: int, second: int) -> Tensor:
        settings = {"dtype": torch.float64, "device": torch.device("cpu")}
        query = rotate(q, rope(range(first, first + 2), 2, 3, **settings))
        key = rotate(k, rope(range(second, second + 2), 2, 3, **settings))
        return torch.einsum("bqhd,bkhd->bqk", query, key)

    q, k = torch.randn(2, 1, 12, 1, 12, dtype=torch.float64)
    torch.testing.assert_close(logits(3 + shift, shift), logits(3, 0), atol=1e-10, rtol=0)
    assert (logits(4 + shift, shift) - logits(3, 0)).abs().max() > 1e-3


def test_a_chunk_alone_does_not_know_its_position_but_knows_its_distance_to_the_past(
    make_network: MakeNetwork,
) -> None:
    network = make_network()
    text, t = network.text_keys_values(words(1)), torch.tensor([0.7]).double()
    x_t, past_x = clip(2), clip(2)
    alone = [network.forward_chunk(x_t, t, text, past=None, position=p)[0] for p in (0, 40)]
    torch.testing.assert_close(alone[0], alone[1], atol=1e-10, rtol=0)

    fresh = network.forward_chunk(past_x, t, text, past=None, position=0)[1]

    def after(past_position: int, position: int) -> Tensor:
        rotation = network.rotation(range(past_position, past_position + 2), 4, 6)
        past = [layer._replace(keys=rotate(layer.keys, rotation)) for layer in fresh]
        return network.forward_chunk(x_t, t, text, past=past, position=position)[0]

    torch.testing.assert_close(after(40, 42), after(0, 2), atol=1e-10, rtol=0)
    assert (after(0, 3) - after(0, 2)).abs().max() > 1e-4


def test_keys_and_values_alone_are_those_of_the_whole_pass(make_network: MakeNetwork) -> None:
    network = make_network()
    text, t = network.text_keys_values(words(2)), torch.rand(2).double()
    past = network.forward_chunk(clip(2, batch=2), t, text, past=None, position=0)[1]
    for where in ({"past": None, "position": 0}, {"past": past, "position": 2}):
        x_t = clip(2, batch=2)
        expected = network.forward_chunk(x_t, t, text, **where)[1]
        found = network.chunk_keys_values(x_t, t, text, **where)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.keys, b.keys)
            assert torch.equal(a.values, b.values)


def test_equal_times_and_texts_per_frame_are_those_of_the_sample(make_network: MakeNetwork) -> None:
    network = make_network()
    x_t, t, text = clip(3, batch=2), torch.rand(2).double(), words(2)
    expected = network(x_t, t, text)
    found = network(x_t, t[:, None].expand(2, 3), text[:, None].expand(2, 3, 3, 8))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_frames_own_time_and_text_reach_that_frame(make_network: MakeNetwork) -> None:
    network = make_network()
    x_t, t, text = clip(3), torch.full((1, 3), 0.5).double(), words(1, 3)
    alone = torch.eye(3, dtype=torch.bool)  # frames that cannot see each other
    other_t, other_text = t.clone(), text.clone()
    other_t[:, 1], other_text[:, 2] = 0.6, words(1)
    change = network(x_t, other_t, other_text, frame_mask=alone) - network(x_t, t, text, frame_mask=alone)
    changed = change.abs().amax(dim=(0, 2, 3, 4))
    assert changed[0] < 1e-12
    assert (changed[1:] > 1e-4).all()


def test_a_batch_is_its_samples_one_by_one(make_network: MakeNetwork) -> None:
    network = make_network()
    x_t, t, text = clip(2, batch=3), torch.rand(3, 2).double(), words(3, 2)
    one_by_one = torch.cat([network(x_t[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x_t, t, text), one_by_one, atol=1e-12, rtol=0)


def test_one_chunk_without_past_is_the_full_forward(make_network: MakeNetwork) -> None:
    network = make_network()
    x_t, t, text = clip(3), torch.rand(1, 3).double(), words(1, 3)
    chunk = network.forward_chunk(x_t, t, network.text_keys_values(text), past=None, position=0)[0]
    torch.testing.assert_close(chunk, network(x_t, t, text), atol=1e-12, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2])
def test_teacher_forcing_shows_each_chunk_what_a_cached_rollout_shows_it(
    make_network: MakeNetwork, chunk: int
) -> None:
    network = make_network()
    frames = 3 * chunk
    clean, noised, text = clip(frames), clip(frames), words(1)
    t = torch.rand(1, 3).double().repeat_interleave(chunk, 1)
    both = network(
        torch.cat([clean, noised], 1),
        torch.cat([torch.zeros_like(t), t], 1),
        text,
        frame_mask=teacher_forcing(frames, chunk=chunk),
        copies=2,
    )

    causal = network(clean, torch.zeros_like(t), text, frame_mask=chunk_causal(frames, chunk=chunk))
    torch.testing.assert_close(both[:, :frames], causal, atol=1e-10, rtol=0)

    cache = StreamCache(
        network, CacheConfig(window=frames, chunk=chunk, sink_mode="none"), batch=1, height=4, width=6
    )
    keys_values = network.text_keys_values(text)
    for start in range(0, frames, chunk):
        own = slice(start, start + chunk)
        past, position = cache.past(), cache.position
        predicted = network.forward_chunk(
            noised[:, own], t[:, own], keys_values, past=past, position=position
        )[0]
        torch.testing.assert_close(
            both[:, frames + start : frames + start + chunk], predicted, atol=1e-10, rtol=0
        )
        fresh = network.forward_chunk(
            clean[:, own], torch.zeros(1).double(), keys_values, past=past, position=position
        )[1]
        cache.commit(fresh, chunk)


def test_generation_before_training_leaves_training_possible(make_network: MakeNetwork) -> None:
    network = make_network()
    x_t, t, context = clip(2), torch.ones(1).double(), words(1)
    with torch.inference_mode():  # as Lightning validates before the first step
        network.forward_chunk(x_t, t, network.text_keys_values(context), past=None, position=0)
    text = network.text_keys_values(context)
    network.forward_chunk(x_t, t, text, past=None, position=0)[0].sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("sizes", "named"),
    [({"dim": 50}, "dim=50"), ({"dim": 36}, "num_heads=4"), ({"freq_dim": 15}, "freq_dim=15")],
)
def test_impossible_sizes_are_named(sizes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TransformerConfig(**{"dim": 48, "num_heads": 4, **sizes})


@pytest.mark.parametrize("size", [(3, 4), (4, 5)])
def test_latents_that_patches_do_not_divide_are_named(
    make_network: MakeNetwork, size: tuple[int, int]
) -> None:
    x_t = torch.zeros(1, 1, 4, *size, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"latents of \dx\d do not divide into patches of 2x2"):
        make_network()(x_t, torch.ones(1).double(), words(1))


def attentions(network: VideoTransformer) -> list[Attention]:
    return [module for module in network.modules() if isinstance(module, Attention)]


def test_fused_projections_change_nothing_and_are_dropped_with_what_they_belong_to(
    make_network: MakeNetwork,
) -> None:
    network = make_network()
    plain = copy.deepcopy(network)
    network.fuse_projections()
    assert all(layer._fused is not None for layer in attentions(network))
    assert network.state_dict().keys() == plain.state_dict().keys()
    x_t, t = clip(3), torch.tensor([0.7])
    text = network.text_keys_values(words(1))
    expected = plain.forward_chunk(x_t, t, text, past=None, position=0)[0]
    found = network.forward_chunk(x_t, t, text, past=None, position=0)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0.0)

    for other in (copy.deepcopy(network), network.to(torch.float32).to(torch.float64)):
        assert all(layer._fused is None for layer in attentions(other))
        with torch.no_grad():
            for layer in attentions(other):
                layer.q.weight.mul_(2.0)
        changed = other.forward_chunk(x_t, t, text, past=None, position=0)[0]
        assert (changed - expected).abs().max() > 1e-3
