"""Pictures to meshes in few steps, from a folder in TRELLIS's format, bundled or released."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fewstep.modalities.shape3d.conditioning.pictures import centred_on_black, picture_values
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder
from fewstep.modalities.shape3d.released.hub import find_pipeline
from fewstep.modalities.shape3d.released.pipeline import (
    IMAGE_ENCODER,
    LATENT_FLOW,
    MESH_DECODER,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    ReleasedPipeline,
    load_pipeline,
)
from fewstep.modalities.shape3d.released.pipeline_json import FILE, IMAGE_PIPELINE, read_pipeline
from fewstep.modalities.shape3d.surface.decoded import extracted

PRESETS = "fewstep.modalities.shape3d.presets"
TEACHER = "teacher"  # a second pipeline in the folder, on the same decoders
ROLES = (STRUCTURE_FLOW, STRUCTURE_DECODER, LATENT_FLOW, MESH_DECODER)

Tokens = Float[Tensor, " batch token dim"]
ImageTokens = Callable[[Sequence[Image.Image]], Tokens]
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


class MeshModel:
    """A pipeline and the image encoder that it was trained with.

    Args:
        pipeline: the flows as they are sampled by default, and the decoders.
        image_tokens: what the flows see of pictures.
    """

    def __init__(self, pipeline: ReleasedPipeline, image_tokens: ImageTokens) -> None:
        self.pipeline, self.image_tokens = pipeline, image_tokens

    @classmethod
    def load(
        cls,
        name: str,
        *,
        teacher: bool = False,
        image_encoder: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> "MeshModel":
        """A bundled preset by its name, or a folder in TRELLIS's format, on disk or on the hub.

        Args:
            teacher: the teacher that the folder's student was distilled from.
            image_encoder: DINOv2 with registers from disk, which TRELLIS's own folders do not hold.

        Raises:
            FileNotFoundError: for a name that is neither.
            ValueError: for a pipeline that takes no pictures, or an encoder that is missing.
        """
        folder = _folder(name)
        chosen = folder / TEACHER if teacher else folder
        if teacher and not (chosen / FILE).is_file():
            raise FileNotFoundError(f"{name} has no teacher; it holds one pipeline only")
        file = read_pipeline(chosen)
        if file.name != IMAGE_PIPELINE:
            raise ValueError(f"{name} is a {file.name}; a pipeline from pictures is needed here")
        own = (IMAGE_ENCODER,) if file.own_condition_model is not None else ()
        pipeline = load_pipeline(chosen, roles=(*ROLES, *own), device=device)
        if own:
            encoder = pipeline.model(IMAGE_ENCODER)
            assert isinstance(encoder, ImageEncoder)
            return cls(pipeline, lambda pictures: small_tokens(encoder, pictures))
        if image_encoder is None:
            raise ValueError(
                f"{name} sees pictures by {file.condition_model}, which is not in the folder; "
                "give its path as image_encoder"
            )
        from fewstep.modalities.shape3d.conditioning.dinov2 import load_dinov2

        dino = load_dinov2(image_encoder).to(device)

        def tokens(pictures: Sequence[Image.Image]) -> Tokens:
            squares = [picture_values(centred_on_black(one, size=dino.image_size)) for one in pictures]
            return dino(torch.stack(squares).to(device))

        return cls(pipeline, tokens)

    @property
    def steps(self) -> Steps:
        """Of the two stages, by default."""
        file = self.pipeline.file
        return file.structure_sampling.num_steps, file.latent_sampling.num_steps

    @torch.no_grad()
    def generate(
        self, pictures: Sequence[Image.Image], *, seeds: Sequence[int], steps: Steps | None = None
    ) -> Iterator[Generated]:
        """One mesh per picture, as soon as it is made; each depends on its picture and seed alone.

        Args:
            seeds: of the noise, one per picture.
            steps: of the two stages.

        Raises:
            ValueError: for steps below 1, as many seeds as there are not pictures, or an empty object.
        """
        if len(pictures) != len(seeds):
            raise ValueError(f"{len(seeds)} seeds for {len(pictures)} pictures; give one each")
        pipeline = self.pipeline if steps is None else with_steps(self.pipeline, steps)
        for picture, seed in zip(pictures, seeds, strict=True):
            yield self._one(pipeline, picture, seed)

    def _one(self, pipeline: ReleasedPipeline, picture: Image.Image, seed: int) -> Generated:
        marks = [time.perf_counter()]

        def done() -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # or a stage would be charged for what the last one left running
            marks.append(time.perf_counter())

        generator = torch.Generator().manual_seed(seed)
        condition = self.image_tokens([picture])
        null = torch.zeros_like(condition)
        done()
        voxels = pipeline.structure(condition, null, generator=generator)
        done()
        latents = pipeline.latents(voxels, condition, null, generator=generator)
        done()
        decoded = pipeline.decode(latents)
        done()
        mesh = extracted(decoded)[0]
        done()
        if not len(mesh.faces):
            raise ValueError(f"seed={seed} gave an object without a surface; try another seed")
        stages = ("picture", "structure", "latents", "decode", "surface")
        seconds = {
            stage: later - earlier for stage, earlier, later in zip(stages, marks, marks[1:], strict=False)
        }
        file = pipeline.file
        nfe = (file.structure_sampling.nfe, file.latent_sampling.nfe)
        return Generated(mesh=mesh, voxels=len(voxels), seconds=seconds, nfe=nfe)


def with_steps(pipeline: ReleasedPipeline, steps: Steps) -> ReleasedPipeline:
    """The same networks, sampled in other numbers of steps."""
    if min(steps) < 1:
        raise ValueError(f"steps={steps[0]}x{steps[1]} must be at least 1x1")
    file = pipeline.file
    structure = replace(file.structure_sampling, num_steps=steps[0])
    latent = replace(file.latent_sampling, num_steps=steps[1])
    return replace(pipeline, file=replace(file, structure_sampling=structure, latent_sampling=latent))


def small_tokens(encoder: ImageEncoder, pictures: Sequence[Image.Image]) -> Tokens:
    """By the bundled encoder, which knows objects in their studio and cut out on black."""
    size = encoder.config.image_size
    prepared = []
    for picture in pictures:
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = centred_on_black(picture.convert("RGBA"), size=size)
        else:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            picture = picture.convert("RGB").crop((left, top, left + side, top + side))
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        prepared.append(picture_values(picture))
    parameter = next(encoder.parameters())
    return encoder(torch.stack(prepared).to(parameter))


def _folder(name: str) -> Path:
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
