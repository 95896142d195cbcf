"""Distillation on tiny networks and videos: what is judged, where gradients go, and what is exported."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
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
from fewstep.modalities.video.cache import CacheConfig, StreamCache, Succession
from fewstep.modalities.video.codec import CodecConfig
from fewstep.modalities.video.distillation import VideoRoles
from fewstep.modalities.video.flow_training import VideoFlowTraining
from fewstep.modalities.video.latents import LatentVideoData
from fewstep.modalities.video.model_folder import load_transformer
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

        def commit(self, fresh: Any, frames: int, succession: Succession | None = None) -> None:
            super().commit(fresh, frames, succession)
            self.fusions += len(self.evicted)
            if self.first is None:
                self.first = self.sink

    monkeypatch.setattr("fewstep.modalities.video.distillation.StreamCache", Recorded)
    return made


def test_distillation_trains_both_networks_over_sinks_that_fuse(
    root: Path, models: Path, fit: Fit, caches: list[Any], latent_data: LatentClips, logged: Logged
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
        latent_data(12),
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


def test_the_student_is_exported_while_it_trains(
    root: Path, models: Path, fit: Fit, latent_data: LatentClips
) -> None:
    steps: list[float] = []

    class Watch(ExportStudent):
        def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super()._export(trainer, pl_module)
            steps.append(read_card(Path(trainer.default_root_dir) / "model").metrics["steps"])

    module = Distiller(roles(models), ReDMD(MotionReward()), critic_updates=1)
    data = latent_data(4)
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
    root: Path, models: Path, fit: Fit, latent_data: LatentClips
) -> None:
    with pytest.raises(ValueError, match="every_steps=0"):
        ExportStudent(every_steps=0)
    with pytest.raises(ValueError, match="needs a Distiller, not a VideoFlowTraining"):
        fit(VideoFlowTraining(TRANSFORMER), latent_data(4), 1, ExportStudent(1))


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
