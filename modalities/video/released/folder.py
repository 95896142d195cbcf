"""The parts of a student of Wan 2.1 in folders as they are released, in Wan's own layout or diffusers'."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.modalities.video.parts import TEXT_ENCODER, TOKENIZER, Parts
from fewstep.modalities.video.released.codec_file import load_taehv, load_wan_vae
from fewstep.modalities.video.released.recipes import RECIPES, guessed_recipe, recipe
from fewstep.modalities.video.released.transformer_file import CONFIG, load_transformer_file
from fewstep.modalities.video.text import TextEncoder
from fewstep.modalities.video.umt5 import UMT5Text

VAE_FILES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors")
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
OWN_TOKENIZER = Path("google") / "umt5-xxl"
STUDENTS = ("*.pt", "checkpoints/*.pt")
ADAPTERS = "lora.pt"  # LongLive's, beside its student
DEFAULT_PROMPT = (
    "A cinematic tracking shot follows a red fox trotting along a forest path in the early morning, golden "
    "light falling through the leaves, mist between the trees"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReleasedFiles:
    """Where each part is.

    Args:
        transformer: a file of the student, or a folder with the transformer.
        config_folder: where the transformer's `config.json` is.
        codec: Wan's autoencoder, a file or diffusers' folder; or TAEHV's file.
        light: whether ``codec`` is TAEHV.
        text_encoder: None for a folder without.
        tokenizer: likewise.
        recipe: name in ``RECIPES``.
        ema: take averaged weights where a file has both.
        lora: adapters to merge, or None.
    """

    transformer: Path
    config_folder: Path | None
    codec: Path
    light: bool
    text_encoder: Path | None
    tokenizer: Path | None
    recipe: str
    ema: bool = True
    lora: Path | None = None


def find_files(
    base: Path,
    *,
    student: Path | None = None,
    recipe_name: str | None = None,
    taehv: Path | None = None,
    ema: bool = True,
    lora: Path | None = None,
) -> ReleasedFiles:
    """The parts of a released folder.

    Args:
        base: Wan2.1-T2V-1.3B or -14B, as Wan or diffusers released it; may hold the student's file too.
        student: its file or folder, where it is not in ``base``.
        recipe_name: None guesses by the student's file name.
        taehv: decode with this instead of Wan's autoencoder.
        lora: adapters; None takes those beside the student, if its recipe has some, or warns without.

    Raises:
        FileNotFoundError: a part is missing; the message says which, and where to put it.
        ValueError: more than one student, or one whose recipe is not known by its name.
    """
    if not base.is_dir():
        raise FileNotFoundError(f"{base} is no folder; give that of Wan2.1-T2V-1.3B or -14B")
    student = student or _student_in(base)
    transformer = student or _transformer_folder(base)
    name = recipe_name or _recipe_named(base if student is None else student)
    if name is None:
        raise ValueError(
            f"{transformer} does not say by its name how it generates; give the recipe, one of "
            f"{', '.join(RECIPES)} (plain Wan 2.1 is no few-step student)"
        )
    if lora is None and recipe(name).adapters:
        lora = _adapters_beside(transformer, recipe(name).adapters)
    encoder, tokenizer = _text_in(base)
    return ReleasedFiles(
        transformer=transformer,
        config_folder=next((f for f in (base, base / "transformer") if (f / CONFIG).is_file()), None),
        codec=_vae_in(base) if taehv is None else taehv,
        light=taehv is not None,
        text_encoder=encoder,
        tokenizer=tokenizer,
        recipe=name,
        ema=ema,
        lora=lora,
    )


def _recipe_named(path: Path) -> str | None:
    """By its own name, or for a file by that of the folder it came in, as CausVid's."""
    return guessed_recipe(path.name) or (guessed_recipe(path.parent.name) if path.is_file() else None)


def looks_released(base: Path) -> bool:
    """Whether a folder is in one of the layouts, whole or not."""
    signs = (base / "model_index.json", base / CONFIG)
    return any(path.is_file() for path in signs) or any(any(base.glob(pattern)) for pattern in STUDENTS)


def open_released(base: Path) -> Parts:
    """Everything of a released folder that holds one student whose recipe its name says."""
    return load_parts(find_files(base))


def load_parts(files: ReleasedFiles, *, size: tuple[int, int] | None = None) -> Parts:
    """The networks, strictly, in the dtypes of their files.

    Args:
        size: height and width of the frames, in pixels; None is what the students were trained for.
    """
    card = recipe(files.recipe).card(files.recipe) | {"default_prompt": DEFAULT_PROMPT, "steering": {}}
    if size is not None:
        card |= {"height": size[0], "width": size[1]}
    text = TextEncoder() if files.text_encoder is None else UMT5Text(*_both(files))
    return Parts(
        card=card,
        student=load_transformer_file(
            files.transformer, config_folder=files.config_folder, ema=files.ema, lora=files.lora
        ),
        codec=load_taehv(files.codec) if files.light else load_wan_vae(files.codec),
        text=text,
    )


def _both(files: ReleasedFiles) -> tuple[Path, Path]:
    if files.text_encoder is None or files.tokenizer is None:
        raise FileNotFoundError(
            f"{files.text_encoder or files.tokenizer} has no other half; a text encoder needs its tokenizer, "
            f"as {TOKENIZER} or {OWN_TOKENIZER}"
        )
    return files.text_encoder, files.tokenizer


def _student_in(base: Path) -> Path | None:
    paths = (path for pattern in STUDENTS for path in base.glob(pattern))
    found = sorted(path for path in paths if path.name != ADAPTERS)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{base} holds several students ({names}); say which one")
    return found[0] if found else None


def _adapters_beside(student: Path, source: str) -> Path | None:
    beside = student.with_name(ADAPTERS)
    if beside.is_file():
        return beside
    log.warning("%s without its adapters is the student before its last training; give %s", student, source)
    return None


def _transformer_folder(base: Path) -> Path:
    return _first([base / "transformer", base], base, f"transformer (a folder with {CONFIG})", CONFIG)


def _vae_in(base: Path) -> Path:
    files = [base / name for name in VAE_FILES]
    return _first([base / "vae", *files], base, f"autoencoder ({VAE_FILES[0]}, or diffusers' folder vae)")


def _text_in(base: Path) -> tuple[Path | None, Path | None]:
    encoders, tokenizers = (base / TEXT_ENCODER, base / TEXT_FILE), (base / TOKENIZER, base / OWN_TOKENIZER)
    return tuple(next((p for p in paths if p.exists()), None) for paths in (encoders, tokenizers))  # pyright: ignore[reportReturnType]


def _first(paths: Sequence[Path], base: Path, what: str, inside: str | None = None) -> Path:
    for path in paths:
        if path.exists() if inside is None else (path / inside).is_file():
            return path
    raise FileNotFoundError(f"{base} has no {what}; download it there, or copy the folder whole")
