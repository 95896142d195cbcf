"""Every stage of the recipe on tiny networks and videos: it runs, it learns, and its export loads."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from fewstep.core.checkpoints import read_card
from fewstep.core.objectives.contract import Sample
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.rewards.motion import MotionReward
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.core.training.run_folder import JsonLines, read_metrics
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.codec_training import CodecTraining, pixel_losses, to_unit_range
from fewstep.modalities.video.data import VideoDataModule, write_clip
from fewstep.modalities.video.distillation import VideoRoles
from fewstep.modalities.video.flow_training import VideoFlowTraining
from fewstep.modalities.video.latents import LatentVideoData
from fewstep.modalities.video.model_folder import load_codec, load_transformer, save_codec, save_transformer
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

CODEC = CodecConfig(channels=4, width=8, depth=1)
TRANSFORMER = TransformerConfig(
    dim=24, ffn_dim=48, num_layers=2, num_heads=2, channels=4, freq_dim=16, text_dim=8
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drifting stripes of 32x32 pixels, red in the first half of the video and blue in the second."""
    root = tmp_path_factory.mktemp("videos")
    length = 24
    phase = np.arange(length)[:, None, None] + np.arange(32)[None, None, :] / 2
    stripes = np.broadcast_to(127 + 100 * np.sin(phase / 2), (length, 32, 32))
    frames = np.zeros((length, 32, 32, 3), dtype=np.uint8)
    frames[:12, ..., 0], frames[12:, ..., 2] = stripes[:12], stripes[12:]
    segments = [{"start": 0, "captions": ["red stripes"]}, {"start": 12, "captions": ["blue stripes"]}]
    for split in ("train", "val"):
        write_clip(root / split, "00000", frames, {"segments": segments}, fps=12.0)
    return root


@pytest.fixture
def models(
    tmp_path: Path, make_codec: Callable[..., VideoCodec], make_network: Callable[..., VideoTransformer]
) -> Path:
    """Random model folders ``codec`` and ``network``."""
    save_codec(tmp_path / "codec", make_codec(dtype=torch.float32), training={}, metrics={})
    network = make_network(dtype=torch.float32, dim=24, ffn_dim=48, num_heads=2)
    save_transformer(tmp_path / "network", network, training={}, metrics={})
    return tmp_path


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    def fit(
        module: LightningModule, data: LightningDataModule, steps: int, *callbacks: Callback, **settings: Any
    ) -> Path:
        folder = tmp_path / "run"
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            default_root_dir=folder,
            logger=JsonLines(folder),
            log_every_n_steps=1,
            check_val_every_n_epoch=None,
            val_check_interval=steps,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **settings,
        )
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == steps
        return folder

    return fit


def latent_data(root: Path, models: Path, clip_frames: int) -> LatentVideoData:
    return LatentVideoData(
        str(root), str(models / "codec"), clip_frames=clip_frames, batch_size=2, size=32, val_batches=1
    )


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if name in row]


def test_the_codec_learns_and_its_export_loads(root: Path, fit: Fit) -> None:
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
    root: Path, models: Path, fit: Fit, chunk: int | None
) -> None:
    """The bidirectional teacher from nothing, and the causal student by teacher forcing."""
    module = VideoFlowTraining(TRANSFORMER, chunk=chunk, learning_rate=1e-2, ema_decay=0.9)
    folder = fit(module, latent_data(root, models, clip_frames=4), 40)
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


CACHE = CacheConfig(window=4, chunk=1, sink=1, sink_mode="ema", decay=0.7)


def roles(models: Path, **settings: Any) -> VideoRoles:
    return VideoRoles(
        teacher=str(models / "network"),
        student=str(models / "network"),
        codec=str(models / "codec"),
        **{
            "cache": CACHE,
            "step_grids": {1: [1.0], 2: [1.0, 0.7]},
            "score_chunks": 3,
            "latent_size": (4, 4),
            **settings,
        },
    )


def captions(chunks: int) -> dict[str, Tensor]:
    return {"features": torch.randn(2, chunks, 4, 8)}


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[StreamCache]:
    """Every cache that a rollout makes."""
    made: list[StreamCache] = []

    class Recorded(StreamCache):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.first: Tensor | None = None
            self.fusions = 0
            made.append(self)

        def commit(self, fresh: Any, frames: int) -> None:
            super().commit(fresh, frames)
            self.fusions += len(self.evicted)
            if self.first is None:
                self.first = self.sink

    monkeypatch.setattr("fewstep.modalities.video.distillation.StreamCache", Recorded)
    return made


def test_distillation_trains_both_networks_over_sinks_that_fuse(
    root: Path, models: Path, fit: Fit, caches: list[Any]
) -> None:
    networks = roles(models)
    before = {name: p.clone() for name, p in networks.named_parameters()}
    module = Distiller(
        networks,
        ReDMD(MotionReward()),
        student_lr=1e-3,
        critic_lr=1e-3,
        critic_updates=2,
        ema_decay=0.5,
    )
    folder = fit(
        module,
        latent_data(root, models, clip_frames=12),
        4,
        ExportStudent(every_steps=3),
        limit_val_batches=0,
    )
    assert all(map(math.isfinite, logged(folder, "loss/student") + logged(folder, "loss/critic")))
    assert len(logged(folder, "loss/critic")) == 4
    changed = {
        name.split(".")[0] for name, p in networks.named_parameters() if not torch.equal(p, before[name])
    }
    assert changed == {"student", "critic"}

    assert len(caches) == 4
    for cache in caches:
        assert cache.fusions == max(0, cache.frames_seen - 3)
        assert torch.equal(cache.sink, cache.first) == (cache.fusions == 0)
    assert sum(cache.fusions for cache in caches) > 4

    loaded = load_transformer(folder / "model").state_dict()
    torch.testing.assert_close(
        {name: loaded[name] for name in module.ema.names}, module.ema.averaged_state(), atol=0.0, rtol=0.0
    )
    card = read_card(folder / "model")
    assert card.step_grids == {"1": [1.0], "2": [1.0, 0.7]}
    assert (card.guidance.scale, card.guidance.baked) == (2.5, True)
    assert [card.nfe(steps) for steps in (1, 2)] == [1, 2]


def test_the_student_is_exported_while_it_trains(root: Path, models: Path, fit: Fit) -> None:
    steps: list[float] = []

    class Watch(ExportStudent):
        def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super()._export(trainer, pl_module)
            steps.append(read_card(Path(trainer.default_root_dir) / "model").metrics["steps"])

    module = Distiller(roles(models), ReDMD(MotionReward()), critic_updates=1)
    data = latent_data(root, models, clip_frames=4)
    fit(module, data, 3, Watch(every_steps=2), limit_val_batches=0)
    assert steps == [2, 3]


def test_a_rollout_is_judged_on_its_last_chunks_under_their_own_captions(
    models: Path, caches: list[Any]
) -> None:
    networks, batch = roles(models), captions(9)
    lengths = set()
    for seed in range(12):
        generated = networks.generate(batch, generator=torch.Generator().manual_seed(seed), with_grad=False)
        chunks = int(generated.diagnostics["chunks"])
        lengths.add(chunks)
        assert caches[-1].frames_seen == chunks
        assert generated.x.shape == (2, 3, 4, 4, 4)
        assert torch.equal(torch.as_tensor(generated.condition), batch["features"][:, chunks - 3 : chunks])
    assert min(lengths) >= 3
    assert max(lengths) <= 9
    assert len(lengths) > 3


def test_a_chunk_generates_under_the_caption_of_its_last_frame(models: Path) -> None:
    """A change of mind inside a chunk counts for the whole chunk, and it reaches the student."""
    networks = roles(
        models, cache=CacheConfig(window=6, chunk=2, sink=2), score_chunks=2, step_grids={1: [1.0]}
    )
    batch = captions(4)
    ignored, heard = {"features": batch["features"].clone()}, {"features": batch["features"].clone()}
    ignored["features"][:, 2] += 1.0
    heard["features"][:, 3] += 1.0

    def sample(of: dict[str, Tensor]) -> Tensor:
        return networks.generate(of, generator=torch.Generator().manual_seed(0), with_grad=False).x

    assert torch.equal(sample(ignored), sample(batch))
    assert not torch.equal(sample(heard), sample(batch))


def test_gradient_reaches_the_student_alone_and_only_when_asked(models: Path) -> None:
    networks = roles(models)
    for with_grad in (False, True):
        generated = networks.generate(
            captions(8), generator=torch.Generator().manual_seed(1), with_grad=with_grad
        )
        assert generated.x.requires_grad == with_grad
    generated.x.square().sum().backward()
    reached = {name.split(".")[0] for name, p in networks.named_parameters() if p.grad is not None}
    assert reached == {"student"}
    assert all(p.grad is not None for p in networks.student.parameters())


def test_only_the_judged_chunks_keep_a_graph(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, graphs = roles(models), []
    forward_chunk = VideoTransformer.forward_chunk

    def counted(self: VideoTransformer, *args: Any, **settings: Any) -> Any:
        velocity, fresh = forward_chunk(self, *args, **settings)
        graphs.append(velocity.requires_grad)
        return velocity, fresh

    monkeypatch.setattr(VideoTransformer, "forward_chunk", counted)
    for seed in range(4):
        graphs.clear()
        generated = networks.generate(
            captions(8), generator=torch.Generator().manual_seed(seed), with_grad=True
        )
        assert sum(graphs) == 3
        assert len(graphs) >= int(generated.diagnostics["chunks"])


def test_a_rollout_repeats_under_the_same_generator(models: Path) -> None:
    networks, batch = roles(models), captions(8)

    def sample(seed: int) -> Tensor:
        return networks.generate(batch, generator=torch.Generator().manual_seed(seed), with_grad=False).x

    first = sample(4)
    torch.randn(5)
    assert torch.equal(sample(4), first)
    assert not torch.equal(sample(5), first)


def test_rewards_see_the_decoded_clip_between_zero_and_one(models: Path) -> None:
    networks = roles(models)
    generated = networks.generate(captions(4), generator=torch.Generator().manual_seed(0), with_grad=False)
    with torch.no_grad():
        pixels, expected = networks.decode(generated.x), networks.codec.decode(generated.x)
    assert pixels.shape == (2, 6, 3, 32, 32)
    torch.testing.assert_close(pixels, ((expected + 1) / 2).clamp(0, 1))


def test_the_judged_length_is_what_real_clips_are_cut_to(models: Path) -> None:
    batch = {"latents": torch.randn(2, 8, 4, 4, 4), "features": torch.randn(2, 8, 4, 8)}
    data = roles(models).data(batch)
    assert torch.equal(data.x0, batch["latents"][:, :3])
    assert torch.equal(torch.as_tensor(data.condition), batch["features"][:, :3])


def test_processes_choose_the_same_chunks_and_steps_but_not_the_same_noise(models: Path) -> None:
    """Networks sharded over processes must be called equally often on each."""
    networks, batch = roles(models), captions(9)

    def sample(seed: int, choices: int | None) -> Sample:
        networks.choices = None if choices is None else torch.Generator().manual_seed(choices)
        return networks.generate(batch, generator=torch.Generator().manual_seed(seed), with_grad=False)

    for choices in range(4):
        one, other = (sample(seed, choices) for seed in (10, 11))
        assert one.diagnostics["chunks"] == other.diagnostics["chunks"]
        assert not torch.equal(one.x, other.x)
    assert len({float(sample(seed, None).diagnostics["chunks"]) for seed in range(8)}) > 1


def gradients_of_rollout(networks: VideoRoles, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's gradient through a rollout over the cache, judged by the teacher and the critic."""
    sample = networks.generate(batch, generator=torch.Generator().manual_seed(3), with_grad=True)
    t = torch.full((2,), 0.5)
    assert networks.teacher is not None
    assert networks.critic is not None
    gap = networks.teacher(sample.x, t, sample.condition) - networks.critic(sample.x, t, sample.condition)
    (gap * sample.x).mean().backward()
    gradients = {name: p.grad for name, p in networks.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


def sharded_gradients(rank: int, networks: VideoRoles, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for network in (networks.student, networks.teacher, networks.critic):
        assert isinstance(network, nn.Module)
        networks.shard(network, mesh)
        kept = [p.numel() for p in network.parameters() if not isinstance(p, DTensor)]
        assert sum(kept) < 0.2 * sum(p.numel() for p in network.parameters())
    return gradients_of_rollout(networks, batch)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module.*returned a view")  # nothing writes into it
def test_networks_sharded_over_two_processes_have_the_same_gradients(models: Path) -> None:
    processes = run_path(str(Path(__file__).parents[2] / "core" / "training" / "processes.py"))
    networks, batch = roles(models), captions(5)
    cast(nn.Module, networks.teacher).requires_grad_(False)
    expected = gradients_of_rollout(copy.deepcopy(networks), batch)
    assert {name.split(".")[0] for name in expected} == {"student", "critic"}
    for found in processes["in_two_processes"](sharded_gradients, networks, batch):
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)  # float32 sums


def test_captions_too_short_to_judge_are_named(models: Path) -> None:
    with pytest.raises(ValueError, match="captions of 2 chunks, but score_chunks=3; use longer clips"):
        roles(models).generate(captions(2), generator=torch.Generator(), with_grad=False)


def test_the_export_refuses_other_modules_and_impossible_intervals(
    root: Path, models: Path, fit: Fit
) -> None:
    with pytest.raises(ValueError, match="every_steps=0"):
        ExportStudent(every_steps=0)
    with pytest.raises(ValueError, match="needs a Distiller, not a VideoFlowTraining"):
        fit(VideoFlowTraining(TRANSFORMER), latent_data(root, models, 4), 1, ExportStudent(1))


def test_checkpointed_blocks_have_the_same_gradients(models: Path) -> None:
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        networks = roles(models, gradient_checkpointing=checkpointed)
        cast(nn.Module, networks.teacher).requires_grad_(False)
        return gradients_of_rollout(networks, batch)

    batch = captions(5)
    expected, found = gradients(False), gradients(True)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
