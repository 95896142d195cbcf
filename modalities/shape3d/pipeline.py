"""Pictures or words to meshes in few steps, from a folder in TRELLIS's format, bundled or released."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import cast

import torch
from torch import nn

from fewstep.core.devices import usable_device
from fewstep.core.precision import fast_dtype
from fewstep.core.seeds import check_seeds
from fewstep.modalities.shape3d.conditioning.sources import (
    Conditioning,
    How,
    Source,
    clip_words,
    dino_pictures,
    small_pictures,
)
from fewstep.modalities.shape3d.gaussians import Gaussians
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.networks.blocks import cast_layers
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder
from fewstep.modalities.shape3d.networks.latent_vae import GaussianDecoder, MeshDecoder, VoxelTransformer
from fewstep.modalities.shape3d.networks.structure_vae import StructureDecoder
from fewstep.modalities.shape3d.released.hub import find_pipeline
from fewstep.modalities.shape3d.released.pipeline import (
    GAUSSIAN_DECODER,
    IMAGE_ENCODER,
    LATENT_FLOW,
    LATENT_IMAGE_ENCODER,
    MESH_DECODER,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    NothingMade,
    ReleasedPipeline,
    load_pipeline,
)
from fewstep.modalities.shape3d.released.pipeline_json import (
    FILE,
    IMAGE_PIPELINE,
    PipelineFile,
    read_pipeline,
)
from fewstep.modalities.shape3d.released.students import with_students
from fewstep.modalities.shape3d.several_pictures import Several
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.surface.decoded import extracted

PRESETS = "fewstep.modalities.shape3d.presets"
TEACHER = "teacher"  # a second pipeline in the folder, on the same decoders
ROLES = (STRUCTURE_FLOW, STRUCTURE_DECODER, LATENT_FLOW, MESH_DECODER)

Steps = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A mesh, and what it took.

    Args:
        voxels: active ones after the first stage.
        seconds: by stage: ``picture``, ``structure``, ``latents``, ``decode``, ``surface``.
        nfe: evaluations of the two flows.
    """

    mesh: Mesh
    voxels: int
    seconds: dict[str, float]
    nfe: Steps


@dataclass(frozen=True, kw_only=True)
class Splatted:
    """Gaussians, and what they took; as ``Generated``, without ``surface``."""

    gaussians: Gaussians
    voxels: int
    seconds: dict[str, float]
    nfe: Steps


class MeshModel:
    """A pipeline and the encoder of pictures, or of words, that it was trained with.

    Args:
        pipeline: the flows as they are sampled by default, and the decoders.
        conditioning: what the flows see of pictures or words.
        latent_conditioning: what the second one sees, where that is something else.
    """

    def __init__(
        self,
        pipeline: ReleasedPipeline,
        conditioning: Conditioning,
        latent_conditioning: Conditioning | None = None,
    ) -> None:
        self.pipeline, self.conditioning = pipeline, conditioning
        self.latent_conditioning = latent_conditioning

    @classmethod
    def load(
        cls,
        name: str,
        *,
        teacher: bool = False,
        gaussians: bool = False,
        image_encoder: str | Path | None = None,
        text_encoder: str | Path | None = None,
        students: Mapping[str, Path] | None = None,
        device: torch.device | str = "cpu",
    ) -> "MeshModel":
        """A bundled preset by its name, or a folder in TRELLIS's format, on disk or on the hub.

        Args:
            teacher: the teacher that the folder's student was distilled from.
            gaussians: load the decoder to Gaussians in place of that to meshes.
            image_encoder: DINOv2 with registers from disk, which TRELLIS's own folders do not hold.
            text_encoder: likewise CLIP with its tokenizer, for pipelines from text.
            students: of the folder's flows, in their place: role -> file, see ``with_students``.

        Raises:
            FileNotFoundError: for a name that is neither.
            ValueError: for an encoder, a decoder or a device that is missing.
        """
        device = usable_device(str(device))
        folder = find_folder(name)
        chosen = folder / TEACHER if teacher else folder
        if teacher and not (chosen / FILE).is_file():
            raise FileNotFoundError(f"{name} has no teacher; it holds one pipeline only")
        file = read_pipeline(chosen)
        if gaussians and GAUSSIAN_DECODER not in file.models:
            raise ValueError(f"{name} has no decoder of Gaussians ({GAUSSIAN_DECODER}); make meshes of it")
        own = tuple(role for role in (IMAGE_ENCODER, LATENT_IMAGE_ENCODER) if role in file.paths)
        decoder = GAUSSIAN_DECODER if gaussians else MESH_DECODER
        encoder = None if own else image_encoder if file.name == IMAGE_PIPELINE else text_encoder
        if encoder is None and not own:
            option = "image_encoder" if file.name == IMAGE_PIPELINE else "text_encoder"
            raise ValueError(
                f"{name} is conditioned by {file.condition_model}, which is not in the folder; "
                f"give its path as {option}"
            )
        pipeline = load_pipeline(chosen, roles=(*ROLES[:-1], decoder, *own), device=device)
        pipeline = with_students(pipeline, students or {}, device=device)
        for role in (STRUCTURE_DECODER, decoder):
            _cast_for_speed(pipeline.model(role))
        latent = small_pictures(_encoder(pipeline, own[1])) if len(own) > 1 else None
        return cls(pipeline, _conditioning(file, pipeline, encoder, device), latent)

    @property
    def steps(self) -> Steps:
        """Of the two stages, by default."""
        file = self.pipeline.file
        return file.structure_sampling.num_steps, file.latent_sampling.num_steps

    def generate(
        self,
        sources: Sequence[Source],
        *,
        seeds: Sequence[int],
        steps: Steps | None = None,
        how: How = "mean",
    ) -> Iterator[Generated]:
        """One mesh per source, as soon as it is made; each depends on its source and seed alone.

        Args:
            sources: pictures, each of one object or a list of several of the same; or words, for pipelines
                from text.
            seeds: of the noise, one per source.
            steps: of the two stages.
            how: several pictures of an object are combined, see `Several`.

        Raises:
            ValueError: for steps below 1, seeds beyond 32 bits, or as many seeds as there are not sources.
            NothingMade: for an empty object.
        """
        for source, seed in _each(sources, seeds):
            latents, made = self._latents(source, seed, steps, how)
            with torch.no_grad():
                decoded = self.pipeline.decode(latents)
                made.done("decode")
                mesh = extracted(decoded)[0]
                made.done("surface")
            if not len(mesh.faces):
                raise NothingMade(f"seed={seed} gave an object without a surface; try another seed")
            yield Generated(mesh=mesh, voxels=len(latents.coords), seconds=made.seconds, nfe=made.nfe)

    def splats(
        self,
        sources: Sequence[Source],
        *,
        seeds: Sequence[int],
        steps: Steps | None = None,
        how: How = "mean",
    ) -> Iterator[Splatted]:
        """Gaussians in place of meshes, by a model that was loaded with ``gaussians``; see ``generate``."""
        decoder = self.pipeline.model(GAUSSIAN_DECODER)
        assert isinstance(decoder, GaussianDecoder)
        for source, seed in _each(sources, seeds):
            latents, made = self._latents(source, seed, steps, how)
            with torch.no_grad():
                decoded = self.pipeline.decode(latents, GAUSSIAN_DECODER)
                gaussians = Gaussians.of(decoder.gaussians(decoded)[0])
            made.done("decode")
            yield Splatted(
                gaussians=gaussians, voxels=len(latents.coords), seconds=made.seconds, nfe=made.nfe
            )

    def latents(self, source: Source, *, seed: int) -> SparseTensor:
        """Of one object, as decoders take them; see ``generate``."""
        return self._latents(source, seed, None, "mean")[0]

    @torch.no_grad()
    def _latents(
        self, source: Source, seed: int, steps: Steps | None, how: How
    ) -> tuple[SparseTensor, "_Course"]:
        check_seeds([seed])
        pipeline = self.pipeline if steps is None else with_steps(self.pipeline, steps)
        made = _Course()
        generator = torch.Generator().manual_seed(seed)
        condition, null = self.conditioning.of(source, how)
        latent_condition, latent_null = (
            (condition, null)
            if self.latent_conditioning is None
            else self.latent_conditioning.of(source, how)
        )
        made.done("picture")
        voxels = pipeline.structure(condition, null, generator=generator)
        made.done("structure")
        latents = pipeline.latents(voxels, latent_condition, latent_null, generator=generator)
        made.done("latents")
        count = condition.per_step if isinstance(condition, Several) else 1
        stages = pipeline.file.structure_sampling, pipeline.file.latent_sampling
        made.nfe = (stages[0].evaluations(count), stages[1].evaluations(count))
        return latents, made


class _Course:
    """How long the stages of one object take, one after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.nfe: Steps = (0, 0)
        self.last = time.perf_counter()

    def done(self, stage: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or a stage would be charged for what the last one left running
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


def _each(sources: Sequence[Source], seeds: Sequence[int]) -> Iterator[tuple[Source, int]]:
    if isinstance(sources, str) or len(sources) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {len(sources)} sources; give lists with one each")
    return zip(sources, seeds, strict=True)


def _conditioning(
    file: PipelineFile,
    pipeline: ReleasedPipeline,
    encoder: str | Path | None,
    device: torch.device | str,
) -> Conditioning:
    if encoder is None:
        return small_pictures(_encoder(pipeline, IMAGE_ENCODER))
    return (dino_pictures if file.name == IMAGE_PIPELINE else clip_words)(encoder, device)


def _cast_for_speed(decoder: nn.Module) -> None:
    """Most of a decoder to half precision on CPUs that are fast in it, much as it is stored for GPUs.

    A decoder rounds once; flows, where the rounding of one step goes on into the next, stay as they are.
    """
    device = next(decoder.parameters()).device
    if device.type != "cpu":
        return
    cast(StructureDecoder | VoxelTransformer, decoder).cast_torso(fast_dtype(device))
    if isinstance(decoder, MeshDecoder):  # whose last layer has few channels and by far the most rows
        cast_layers([decoder.out_layer], fast_dtype(device))


def _encoder(pipeline: ReleasedPipeline, role: str) -> ImageEncoder:
    encoder = pipeline.model(role)
    assert isinstance(encoder, ImageEncoder)
    return encoder


def with_steps(pipeline: ReleasedPipeline, steps: Steps) -> ReleasedPipeline:
    """The same networks, sampled in other numbers of steps."""
    if min(steps) < 1:
        raise ValueError(f"steps={steps[0]}x{steps[1]} must be at least 1x1")
    file = pipeline.file
    structure = replace(file.structure_sampling, num_steps=steps[0])
    latent = replace(file.latent_sampling, num_steps=steps[1])
    return replace(pipeline, file=replace(file, structure_sampling=structure, latent_sampling=latent))


def find_folder(name: str) -> Path:
    """A folder by its path or hub id, or that of a bundled preset."""
    if "/" in name or (Path(name) / FILE).is_file():
        return find_pipeline(name)
    with as_file(files(PRESETS)) as presets:
        if (presets / name / FILE).is_file():
            return presets / name
        known = sorted(path.parent.name for path in presets.glob(f"*/{FILE}"))
    raise FileNotFoundError(
        f"{name!r} is neither a folder with a {FILE} nor a bundled preset ({', '.join(known) or 'none yet'})"
    )
