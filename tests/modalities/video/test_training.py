"""Every stage of the recipe on tiny networks and videos: it runs, it learns, and its export loads."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.checkpoints import read_card
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.codec_training import CodecTraining, pixel_losses, to_unit_range
from fewstep.modalities.video.data import VideoDataModule
from fewstep.modalities.video.flow_training import VideoFlowTraining
from fewstep.modalities.video.latents import LatentVideoData
from fewstep.modalities.video.model_folder import load_codec, load_transformer
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

pytestmark = [
    pytest.mark.usefixtures("word_features"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher and the codec are
]

Fit = Callable[..., Path]
LatentClips = Callable[[int], LatentVideoData]
Logged = Callable[[Path, str], list[float]]

CODEC = CodecConfig(channels=4, width=8, depth=1)
TRANSFORMER = TransformerConfig(
    dim=24, ffn_dim=48, num_layers=2, num_heads=2, channels=4, freq_dim=16, text_dim=8
)


def test_the_codec_learns_and_its_export_loads(root: Path, fit: Fit, logged: Logged) -> None:
    module = CodecTraining(CODEC, learning_rate=1e-2, latent_noise=0.05)
    data = VideoDataModule(str(root), clip_frames=4, size=32, batch_size=2, val_batches=1)
    folder = fit(module, data, 60)
    losses = logged(folder, "loss/pixel")
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    codec = load_codec(folder / "model")
    torch.testing.assert_close(codec.state_dict(), module.codec.state_dict())
    assert int(codec.latent_norm.num_batches_tracked or 0) == 60
    metrics = read_card(folder / "model").metrics
    assert metrics["steps"] == 60
    assert math.isfinite(metrics["val/psnr"])


def test_psnr_is_that_of_eight_bit_pixels(root: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module = CodecTraining(CODEC)
    monkeypatch.setattr(VideoCodec, "encode", lambda self, pixels: pixels)
    monkeypatch.setattr(VideoCodec, "decode", lambda self, latents: latents + 2 * 8 / 255)  # 8 grey levels
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: found.update({name: value}))
    module.validation_step({"frames": torch.randint(0, 200, (1, 4, 3, 8, 8), dtype=torch.uint8)}, 0)
    assert float(found["val/psnr"]) == pytest.approx(20 * math.log10(255 / 8), abs=1e-4)


def test_a_constant_error_costs_pixels_but_neither_edges_nor_motion() -> None:
    pixels = torch.rand(1, 4, 3, 8, 8)
    losses = pixel_losses(pixels + 0.1, pixels)
    assert float(losses["pixel"]) == pytest.approx(0.1, abs=1e-5)
    assert float(losses["edge"]) == pytest.approx(0.0, abs=1e-5)
    assert float(losses["motion"]) == pytest.approx(0.0, abs=1e-5)


def test_bytes_become_numbers_from_minus_one_to_one() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 1, 2).expand(1, 1, 3, 1, 2))[
        0, 0, 0, 0
    ].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("chunk", [None, 2])
def test_flow_matching_learns_and_exports_its_average(
    root: Path, models: Path, fit: Fit, chunk: int | None, latent_data: LatentClips, logged: Logged
) -> None:
    """The bidirectional teacher from nothing, and the causal student by teacher forcing."""
    module = VideoFlowTraining(TRANSFORMER, chunk=chunk, learning_rate=1e-2, ema_decay=0.9)
    folder = fit(module, latent_data(4), 40)
    losses = logged(folder, "loss/velocity")
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])
    loaded = load_transformer(folder / "model").state_dict()
    torch.testing.assert_close(
        {name: loaded[name] for name in module.ema.names}, module.ema.averaged_state(), atol=0.0, rtol=0.0
    )
    assert any(not torch.equal(loaded[name], p) for name, p in module.network.named_parameters())
    card = read_card(folder / "model")
    assert (card.path, card.prediction) == ("linear", "velocity")
    assert all(math.isfinite(card.metrics[f"val/velocity_{t}"]) for t in (0.1, 0.5, 0.98))


def test_a_causal_student_starts_from_its_teachers_weights(models: Path) -> None:
    module = VideoFlowTraining(initial=str(models / "network"), chunk=2)
    expected = load_transformer(models / "network").state_dict()
    torch.testing.assert_close(dict(module.network.state_dict()), dict(expected), atol=0.0, rtol=0.0)
    with pytest.raises(ValueError, match="give `transformer`"):
        VideoFlowTraining()


@pytest.mark.parametrize(("chunk", "frames", "sizes"), [(None, 5, [5]), (2, 4, [2, 2]), (3, 7, [3, 3, 1])])
def test_a_chunk_has_one_time_and_chunks_have_their_own(
    chunk: int | None, frames: int, sizes: list[int]
) -> None:
    times = VideoFlowTraining(TRANSFORMER, chunk=chunk)._times(3, frames)
    assert times.shape == (3, frames)
    assert len(times.unique()) == 3 * len(sizes)
    for part in times.split(sizes, dim=1):
        assert bool((part == part[:, :1]).all())


def test_the_exact_velocity_has_no_error(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = VideoFlowTraining(TRANSFORMER)
    x0, eps, t = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4), torch.rand(2, 3)
    seen: list[Tensor] = []

    def exact(self: object, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        seen.append(x_t)
        return eps - x0

    monkeypatch.setattr(VideoTransformer, "forward", exact)
    error = module._velocity_error(x0, torch.zeros(2, 3, 4, 8), t, eps)
    assert not bool(error.any())
    torch.testing.assert_close(seen[0], x0 + t[..., None, None, None] * (eps - x0))


def test_teacher_forcing_scores_each_chunk_as_a_rollout_over_the_clean_past_would_predict_it(
    models: Path,
) -> None:
    module = VideoFlowTraining(initial=str(models / "network"), chunk=2)
    x0, eps, features = torch.randn(1, 6, 4, 4, 4), torch.randn(1, 6, 4, 4, 4), torch.randn(1, 6, 4, 8)
    t = torch.tensor([0.9, 0.2, 0.6])[None].repeat_interleave(2, 1)
    found = module._velocity_error(x0, features, t, eps)

    config = CacheConfig(window=6, chunk=2, sink_mode="none")
    cache = StreamCache(module.network, config, batch=1, height=4, width=4)
    rollout = ChunkRollout(module.network, (1.0,))
    with torch.no_grad():
        for start in (0, 2, 4):
            own = slice(start, start + 2)
            x_t = x0[:, own] + t[:, own, None, None, None] * (eps - x0)[:, own]
            text = module.network.text_keys_values(features[:, own])
            velocity = module.network.forward_chunk(
                x_t, t[:, own], text, past=cache.past(), position=cache.position
            )[0]
            expected = (velocity - (eps - x0)[:, own]).square().mean(dim=(2, 3, 4))
            torch.testing.assert_close(found[:, own], expected, atol=1e-4, rtol=1e-4)  # float32
            rollout.commit(cache, text, x0[:, own])


def test_captions_of_whole_clips_are_dropped_for_the_empty_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    module = VideoFlowTraining(TRANSFORMER, condition_dropout=0.5)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    seen: list[Tensor] = []

    def forward(self: object, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        seen.append(features)
        return x_t

    monkeypatch.setattr(VideoTransformer, "forward", forward)
    batch = {
        "latents": torch.randn(64, 2, 4, 2, 2),
        "features": torch.ones(64, 2, 4, 8),
        "null_features": torch.zeros(64, 2, 4, 8),
    }
    module.training_step(batch, 0)
    clips = seen[0].flatten(1)
    assert bool(((clips == 0).all(1) | (clips == 1).all(1)).all())
    assert 16 < int((clips == 0).all(1).sum()) < 48  # four standard deviations around 32
