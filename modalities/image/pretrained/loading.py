"""Load an image teacher from a diffusers folder or the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fewstep.modalities.image.pretrained.architectures import (
    ARCHITECTURES,
    DEFAULT_EMBEDDED_GUIDANCE,
    Architecture,
)
from fewstep.modalities.image.pretrained.codec import LatentCodec, latent_channels, pixels_per_latent
from fewstep.modalities.image.pretrained.folder import DiffusersFolder, find_folder
from fewstep.modalities.image.pretrained.schedule import read_schedule
from fewstep.modalities.image.pretrained.teacher import DiffusersTeacher
from fewstep.modalities.image.pretrained.text import PromptEncoder

INSTALL = "image teachers need diffusers: pip install 'fewstep[image]'"
FIRST_DIFFUSERS = (0, 40)  # the first whose models and pipelines both know the argument dtype


def load_teacher(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    network: str | Path | None = None,
    text_encoders: bool = True,
    embedded_guidance: float = DEFAULT_EMBEDDED_GUIDANCE,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
) -> DiffusersTeacher:
    """A teacher from a diffusers folder or a hub id; `ARCHITECTURES` lists the pipelines.

    Args:
        dtype: of the network, the text encoders and the autoencoder; one that overflows in float16 stays in
            float32.
        network: a folder that ``save_student`` wrote, whose network replaces the pipeline's.
        text_encoders: False leaves them out, where conditions are computed elsewhere.
        embedded_guidance: w for networks that take it as an input (FLUX.1-dev).
        variant: of the weight files, such as ``fp16``.
        revision: branch, tag or commit on the hub.
        cache_dir: of the hub's client; None is its own.
        local_files_only: never ask the hub.

    Raises:
        ValueError: for what is no diffusers folder, an unsupported pipeline, missing sub-folders, weights
            that do not fit.
        ConnectionError: for a hub id that is not cached while the hub cannot be reached.
        ImportError: without diffusers and transformers.
    """
    _require_packages()
    skip = [] if text_encoders else [name for kind in ARCHITECTURES.values() for name in kind.text]
    folder = find_folder(
        source,
        supported=ARCHITECTURES,
        skip=sorted(set(skip)),
        variant=variant,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    kind = ARCHITECTURES[folder.pipeline]
    folder.require([kind.network, "vae", "scheduler", *(kind.text if text_encoders else ())])
    vae_config: dict[str, Any] = folder.config("vae", "config.json")
    architecture = kind(pixels_per_latent(vae_config), embedded_guidance)
    schedule = read_schedule(folder.config("scheduler", "scheduler_config.json"))
    overflows = dtype == torch.float16 and vae_config.get("force_upcast", False)
    with _quiet():
        weights = _load_weights(folder, kind.network, dtype, variant, Path(network or folder.path))
        architecture.check(weights, latent_channels(vae_config))
        vae = _load_weights(folder, "vae", torch.float32 if overflows else dtype, variant, folder.path)
        text = _load_text(folder, kind, dtype, variant) if text_encoders else None
    teacher = DiffusersTeacher(
        weights, architecture=architecture, schedule=schedule, codec=LatentCodec(vae), text=text
    )
    return teacher.to(device)


def _require_packages() -> None:
    try:
        found, _ = version("diffusers"), version("transformers")
    except PackageNotFoundError as error:
        raise ImportError(INSTALL) from error
    if tuple(int(part) for part in found.split(".")[:2]) < FIRST_DIFFUSERS:
        raise ImportError(f"{INSTALL} (found diffusers {found})")


def _load_weights(
    folder: DiffusersFolder, name: str, dtype: torch.dtype, variant: str | None, where: Path
) -> Any:
    """A component of diffusers, strictly: a missing or unknown weight is an error that names it."""
    import diffusers
    from diffusers.utils.import_utils import is_accelerate_available

    if not (where / name).is_dir():
        raise ValueError(f"network={str(where)!r} has no sub-folder {name}; give the folder of save_student")
    kind = getattr(diffusers, folder.components[name], None)
    if kind is None:
        raise ValueError(
            f"{folder.path / name} holds a {folder.components[name]}, which diffusers "
            f"{diffusers.__version__} does not have; update it"
        )
    has_variant = any(f".{variant}." in file.name for file in (where / name).iterdir())
    try:
        module, report = kind.from_pretrained(
            where,
            subfolder=name,
            dtype=dtype,
            variant=variant if has_variant else None,
            output_loading_info=True,
            low_cpu_mem_usage=is_accelerate_available(),
            local_files_only=True,
        )
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{where / name} has no weights that can be read ({reason})") from error
    problems = [
        f"{problem.removesuffix('_keys')}: {', '.join(map(str, report[problem]))}"
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report[problem]
    ]
    if problems:
        raise ValueError(
            f"the weights in {where / name} do not fit {folder.components[name]}; {'; '.join(problems)}"
        )
    return module


def _load_text(
    folder: DiffusersFolder, kind: type[Architecture], dtype: torch.dtype, variant: str | None
) -> PromptEncoder:
    import diffusers

    pipeline_class = getattr(diffusers, folder.pipeline)
    others = {name: None for name in folder.components if name not in kind.text}
    pipeline = pipeline_class.from_pretrained(
        folder.path, dtype=dtype, variant=variant, local_files_only=True, **others
    )
    return PromptEncoder(pipeline, kind.places, null_prompt=kind.null_prompt)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of diffusers and transformers inside; the caller's setting comes back after it."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
