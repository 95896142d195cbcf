"""Image teachers from diffusers folders: Stable Diffusion 1.5, XL and 3, PixArt, FLUX, SANA, Qwen-Image."""

from fewstep.modalities.image.pretrained.architectures import ARCHITECTURES
from fewstep.modalities.image.pretrained.loading import load_teacher
from fewstep.modalities.image.pretrained.teacher import DiffusersTeacher

__all__ = ["ARCHITECTURES", "DiffusersTeacher", "load_teacher"]
