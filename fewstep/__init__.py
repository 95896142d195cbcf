"""Few-step distillation of diffusion and flow models, and live streaming of the students."""

__version__ = "0.1.0"
