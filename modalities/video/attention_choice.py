"""The attention kernel for a video model, measured at the start for the shapes of its stream."""

from fewstep.core.attention import BACKENDS, COMPILABLE
from fewstep.core.attention_timing import AttentionShape, Choice, Timer, cuda_milliseconds, prefer_fastest
from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.umt5 import TOKENS


def stream_shapes(model: VideoModel, *, text: int) -> list[AttentionShape]:
    """Of a layer in a stream whose window is full: a chunk over the window, and over ``text`` tokens."""
    config, cache = model.student.config, model.cache_config
    rows, columns = config.patch_size
    tokens = (model.height // STRIDE // rows) * (model.width // STRIDE // columns)
    queries, heads = cache.chunk * tokens, {"heads": config.num_heads, "dim": config.head_dim}
    return [AttentionShape(queries=queries, keys=keys, **heads) for keys in (cache.window * tokens, text)]


def choose_attention(model: VideoModel, *, text: int = TOKENS, timer: Timer = cuda_milliseconds) -> Choice:
    """Let attention on the model's device take the kernel that is the fastest for its stream; where layers
    are compiled, of those that torch's compiler knows. Nothing is measured on a CPU.
    """
    shapes = stream_shapes(model, text=text)
    among = COMPILABLE if model.acceleration.compiled else BACKENDS
    return prefer_fastest(shapes, device=model.device, dtype=model.dtype, timer=timer, among=among)
