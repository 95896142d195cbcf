"""From training runs to one folder in TRELLIS's format: student and teacher on the same decoders."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.core.checkpoints import Card, read_card
from fewstep.core.schedules import uniform_grid
from fewstep.modalities.shape3d.model_folder import load_as
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow
from fewstep.modalities.shape3d.networks.latent_vae import MeshDecoder
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow
from fewstep.modalities.shape3d.networks.structure_vae import StructureDecoder
from fewstep.modalities.shape3d.pipeline import ROLES, TEACHER, Steps
from fewstep.modalities.shape3d.released.model_file import save_model_file
from fewstep.modalities.shape3d.released.pipeline import (
    LATENT_FLOW,
    LATENT_IMAGE_ENCODER,
    MESH_DECODER,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
)
from fewstep.modalities.shape3d.released.pipeline_json import FILE, OWN, PipelineFile, write_pipeline
from fewstep.modalities.shape3d.sampling import FlowSampling
from fewstep.modalities.shape3d.stages import ENCODER, FLOW, read_normalization
from fewstep.modalities.video.packing import copy_in_few_colours

STORAGE = torch.float16  # finer than bfloat16, and weights are far from its ends
LATENT_ENCODER, DECODER = "encoder", "decoder"  # folders of an autoencoder's export
TRAINING = "training"  # curves, and what is known of every run
WEIGHTS = "ckpts"
STEMS = {
    STRUCTURE_DECODER: "ss_dec_conv3d_small",
    MESH_DECODER: "slat_dec_mesh_small",
    STRUCTURE_FLOW: "ss_flow_img_dit_small",
    LATENT_FLOW: "slat_flow_img_dit_small",
}
IMAGE_STEM = "image_cond_small"
LATENT_IMAGE_STEM = "slat_image_cond_small"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Exports of the runs that a pipeline is made of: folders `model` of training runs.

    Args:
        structure_vae: with `decoder`, as `latent_vae` and `latent_decoder`.
        structure_flow: with `flow` and `image_encoder`, as are all flows.
    """

    structure_vae: Path
    latent_vae: Path
    structure_flow: Path
    latent_flow: Path
    structure_student: Path
    latent_student: Path
    latent_decoder: Path | None = None
    """A decoder that was trained alone on the latents of `latent_vae`, in place of its own."""


def pack_shapes(
    folder: Path,
    runs: Runs,
    *,
    steps: Steps = (2, 2),
    teacher_steps: Steps = (25, 25),
    teacher_shift: float = 3.0,
    curves: Mapping[str, Path] | None = None,
) -> None:
    """Write a folder in TRELLIS's format whole, or not at all; an older one is replaced.

    Args:
        steps: of the student's two stages by default; others of its step grids can be chosen later.
        teacher_steps: likewise of the teacher.
        teacher_shift: of the teacher's grid of times; TRELLIS's ``rescale_t``.
        curves: pictures of training curves by name of the run.

    Raises:
        ValueError: runs that do not belong together, a student that this format cannot describe, or a
            folder of something else.
    """
    stages = {STRUCTURE_FLOW: runs.structure_student, LATENT_FLOW: runs.latent_student}
    cards = {role: read_card(path / FLOW) for role, path in stages.items()}
    student = [_sampling(cards[role], count) for role, count in zip(stages, steps, strict=True)]
    teacher = [
        _guided(cards[role], count, teacher_shift) for role, count in zip(stages, teacher_steps, strict=True)
    ]
    _check_image_encoder(runs)
    _check_latent_encoder(runs)
    mean, std = read_normalization(runs.latent_student)
    if (mean, std) != read_normalization(runs.latent_flow):
        raise ValueError("student and teacher of the latents were trained on other normalisations")
    networks: dict[str, nn.Module] = {
        STRUCTURE_DECODER: load_as(StructureDecoder, runs.structure_vae / DECODER),
        MESH_DECODER: load_as(MeshDecoder, (runs.latent_decoder or runs.latent_vae) / DECODER),
        STRUCTURE_FLOW: load_as(StructureFlow, runs.structure_student / FLOW),
        LATENT_FLOW: load_as(LatentFlow, runs.latent_student / FLOW),
    }
    _check_fit(networks, len(mean))
    shared: dict[str, Any] = {"latent_mean": tuple(mean), "latent_std": tuple(std)}
    paths = {role: f"{WEIGHTS}/{STEMS[role]}" for role in ROLES}
    above = {role: paths[role] if role in stages else f"../{paths[role]}" for role in ROLES}
    with _written_whole(folder) as partial:
        for role, network in networks.items():
            save_model_file(network, partial / paths[role], dtype=STORAGE)
        image, latent_image = f"{WEIGHTS}/{IMAGE_STEM}", f"{WEIGHTS}/{LATENT_IMAGE_STEM}"
        for run, path in ((runs.structure_flow, image), (runs.latent_flow, latent_image)):
            save_model_file(load_as(ImageEncoder, run / ENCODER), partial / path, dtype=STORAGE)
        for role, network in (
            (STRUCTURE_FLOW, load_as(StructureFlow, runs.structure_flow / FLOW)),
            (LATENT_FLOW, load_as(LatentFlow, runs.latent_flow / FLOW)),
        ):
            save_model_file(network, partial / TEACHER / paths[role], dtype=STORAGE)
        for place, models, sampling, to in (
            (partial, paths, student, ""),
            (partial / TEACHER, above, teacher, "../"),
        ):
            structure, latent = sampling
            file = PipelineFile(
                models={**models, LATENT_IMAGE_ENCODER: to + latent_image},
                structure_sampling=structure,
                latent_sampling=latent,
                condition_model=OWN + to + image,
                **shared,
            )
            write_pipeline(file, place)
        _write_records(partial / TRAINING, runs, curves or {})


def step_grids(folder: Path) -> dict[str, dict[str, list[float]]]:
    """What the students of a packed folder were distilled to: stage -> number of steps -> times."""
    found = {}
    for stage in ("structure_student", "latent_student"):
        record = folder / TRAINING / f"{stage}.json"
        if not record.is_file():
            raise FileNotFoundError(f"{folder} has no {TRAINING}/{stage}.json; it was not packed here")
        found[stage] = json.loads(record.read_text())["step_grids"]
    return found


def _sampling(card: Card, steps: int) -> FlowSampling:
    """How a student is sampled: without guidance, which is in its weights."""
    if not card.guidance.baked:
        raise ValueError(f"a {card.network} without baked guidance is no student; give an export of one")
    renoise = _role(card, "renoise")
    if renoise != "ddim":
        raise ValueError(f"renoise={renoise!r}: TRELLIS's samplers have no fresh noise; distil with 'ddim'")
    card.times(steps)
    return FlowSampling(
        num_steps=steps, guidance_scale=1.0, interval=None, shift=_shift(card.step_grids), sigma_min=0.0
    )


def _guided(card: Card, steps: int, shift: float) -> FlowSampling:
    """How the teacher is sampled: with the guidance that its student learned."""
    interval = _role(card, "guidance_interval")
    return FlowSampling(
        num_steps=steps,
        guidance_scale=float(card.guidance.scale),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        shift=shift,
        sigma_min=0.0,
    )


def _role(card: Card, name: str) -> Any:
    """A setting of `ShapeRoles` in the configuration that a student was distilled with."""
    training: Any = card.training
    try:
        return training["model"]["init_args"]["roles"]["init_args"][name]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"a student's card does not say how it was distilled (model.init_args.roles.init_args.{name}); "
            "train it with fewstep train and ShapeRoles"
        ) from error


def _shift(grids: Mapping[str, list[float]]) -> float:
    """That of the grid which the student's times are; 1 where there is only the first time."""
    longest = max(grids.values(), key=len)
    if len(longest) == 1:
        return 1.0
    even = 1 - 1 / len(longest)
    shift = longest[1] * (1 - even) / (even * (1 - longest[1]))
    for steps, times in grids.items():
        wanted = uniform_grid(int(steps), scale=shift)[:-1].tolist()
        if not all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(times, wanted, strict=True)):
            raise ValueError(
                f"step_grids[{steps!r}]={times} is no shifted even grid, and TRELLIS's format has no others; "
                f"with shift {shift:.4g} it would be {[round(time, 5) for time in wanted]}"
            )
    return shift


def _check_image_encoder(runs: Runs) -> None:
    """A student must have been trained to see through its teacher's encoder."""
    for teacher, student in (("structure_flow", "structure_student"), ("latent_flow", "latent_student")):
        seen, by = (read_card(getattr(runs, name) / ENCODER).weights_sha256 for name in (teacher, student))
        if seen != by:
            raise ValueError(
                f"{student} saw pictures by another image encoder than {teacher}; train it on that one"
            )


def _check_latent_encoder(runs: Runs) -> None:
    """A decoder must have been trained on the latents that flows make."""
    if runs.latent_decoder is None:
        return
    own, seen = (
        read_card(run / LATENT_ENCODER).weights_sha256 for run in (runs.latent_vae, runs.latent_decoder)
    )
    if own != seen:
        raise ValueError(
            "latent_decoder was trained on another encoder's latents than latent_vae's; train it anew"
        )


def _check_fit(networks: Mapping[str, nn.Module], latents: int) -> None:
    """Voxels per axis, and channels of both kinds of latents, must be those of the next network."""
    configs: dict[str, Any] = {role: network.config for role, network in networks.items()}
    structure, latent = configs[STRUCTURE_FLOW], configs[LATENT_FLOW]
    to_voxels, to_mesh = configs[STRUCTURE_DECODER], configs[MESH_DECODER]
    for what, found in {
        "voxels per axis": (
            structure.resolution * 2 ** (len(to_voxels.channels) - 1),
            latent.resolution,
            to_mesh.resolution,
        ),
        "channels of the structure": (structure.in_channels, to_voxels.latent_channels),
        "channels of the latents": (latent.in_channels, to_mesh.latent_channels, latents),
    }.items():
        if len(set(found)) > 1:
            raise ValueError(
                f"{what} differ: {', '.join(map(str, found))}; pack runs that were trained on each other"
            )


def _write_records(folder: Path, runs: Runs, curves: Mapping[str, Path]) -> None:
    """What is known of every run, but its weights: configuration, metrics, step grids, licence."""
    folder.mkdir()
    for name, path in vars(runs).items():
        if path is None:
            continue
        card = read_card(path / (DECODER if name.endswith(("vae", "decoder")) else FLOW))
        (folder / f"{name}.json").write_text(json.dumps(asdict(card), indent=1) + "\n")
    for name, picture in curves.items():
        copy_in_few_colours(picture, folder / f"{name}.png")


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside it to write to, which takes its place at the end; measurements and samples stay."""
    packed = {FILE, WEIGHTS, TEACHER, TRAINING}
    if folder.exists() and not (folder / FILE).is_file():
        raise ValueError(f"{folder} exists and has no {FILE}; choose another or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / "new"
        partial.mkdir()
        yield partial
        for extra in folder.glob("*") if folder.exists() else ():
            if extra.name not in packed:
                copy = shutil.copytree if extra.is_dir() else shutil.copy2
                copy(extra, partial / extra.name)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(partial, folder)
