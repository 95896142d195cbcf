"""TRELLIS's `pipeline.json`: which models a pipeline has, and how its two stages are sampled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.modalities.shape3d.sampling import FlowSampling

FILE = "pipeline.json"
IMAGE_PIPELINE, TEXT_PIPELINE = "TrellisImageTo3DPipeline", "TrellisTextTo3DPipeline"
OWN = "fewstep:"  # before the path of an encoder within the folder; TRELLIS only has names of well-known ones
CONDITION_MODELS = {IMAGE_PIPELINE: "image_cond_model", TEXT_PIPELINE: "text_cond_model"}
PLAIN, GUIDED, INTERVAL = "FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler"
PARAMETERS = {
    PLAIN: {"steps", "rescale_t"},
    GUIDED: {"steps", "rescale_t", "cfg_strength"},
    INTERVAL: {"steps", "rescale_t", "cfg_strength", "cfg_interval"},
}


@dataclass(frozen=True, kw_only=True)
class PipelineFile:
    """What a `pipeline.json` says.

    Args:
        name: of TRELLIS's class, for images or for text.
        models: role -> path within the folder, without suffix.
        structure_sampling: of the first stage.
        latent_sampling: of the second.
        latent_mean: of each channel of the latents; the flow's are normalised.
        latent_std: likewise.
        condition_model: name of the image or text encoder; or "fewstep:" and the path of one in the folder.
    """

    models: Mapping[str, str]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    condition_model: str
    name: str = IMAGE_PIPELINE
    structure_sampling: FlowSampling = field(default_factory=FlowSampling)
    latent_sampling: FlowSampling = field(default_factory=FlowSampling)

    def __post_init__(self) -> None:
        if self.name not in CONDITION_MODELS:
            raise ValueError(f"name={self.name!r} is no pipeline of TRELLIS: {', '.join(CONDITION_MODELS)}")
        if len(self.latent_mean) != len(self.latent_std) or min(self.latent_std) <= 0:
            raise ValueError(
                f"slat_normalization: mean {self.latent_mean} and std {self.latent_std} must have one entry "
                "per channel, those of std above 0"
            )

    @property
    def own_condition_model(self) -> str | None:
        """Path of the encoder that is in the folder; None where it is one that has to be found elsewhere."""
        return self.condition_model.removeprefix(OWN) if self.condition_model.startswith(OWN) else None

    @property
    def paths(self) -> dict[str, str]:
        """Role -> path of all models in the folder."""
        own = self.own_condition_model
        return dict(self.models) | ({CONDITION_MODELS[self.name]: own} if own is not None else {})


def read_pipeline(folder: str | Path) -> PipelineFile:
    """That of a folder; what is missing or not understood is a ValueError."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}; it is not the folder of a TRELLIS pipeline")
    try:
        record = json.loads(path.read_text())
        name, arguments = record["name"], record["args"]
        normalization = arguments["slat_normalization"]
        return PipelineFile(
            name=name,
            models=arguments["models"],
            structure_sampling=_sampling(arguments["sparse_structure_sampler"]),
            latent_sampling=_sampling(arguments["slat_sampler"]),
            latent_mean=tuple(map(float, normalization["mean"])),
            latent_std=tuple(map(float, normalization["std"])),
            condition_model=arguments[CONDITION_MODELS.get(name, "image_cond_model")],
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}; it is not a pipeline of TRELLIS") from error
    except TypeError as error:
        raise ValueError(f"{path} is not a pipeline of TRELLIS ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_pipeline(pipeline: PipelineFile, folder: str | Path) -> None:
    """The counterpart of `read_pipeline`, in TRELLIS's words."""
    arguments = {
        "models": dict(pipeline.models),
        "sparse_structure_sampler": _record(pipeline.structure_sampling),
        "slat_sampler": _record(pipeline.latent_sampling),
        "slat_normalization": {"mean": list(pipeline.latent_mean), "std": list(pipeline.latent_std)},
        CONDITION_MODELS[pipeline.name]: pipeline.condition_model,
    }
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": pipeline.name, "args": arguments}, indent=4) + "\n")


def _sampling(record: Mapping[str, Any]) -> FlowSampling:
    name, parameters = record["name"], record.get("params", {})
    if name not in PARAMETERS or set(parameters) - PARAMETERS[name]:
        raise ValueError(
            f"sampler {name!r} with {sorted(parameters)} is not supported; supported are "
            f"{ {known: sorted(names) for known, names in PARAMETERS.items()} }"
        )
    strength = parameters.get("cfg_strength", 3.0) if name != PLAIN else 0.0
    low, high = map(float, parameters.get("cfg_interval", (0.0, 1.0)))
    return FlowSampling(
        num_steps=int(parameters.get("steps", 50)),
        guidance_scale=1.0 + strength,
        interval=(low, high) if name == INTERVAL else None,
        shift=float(parameters.get("rescale_t", 1.0)),
        sigma_min=float(record.get("args", {}).get("sigma_min", 0.0)),
    )


def _record(sampling: FlowSampling) -> dict[str, Any]:
    strength = sampling.guidance_scale - 1.0
    parameters = {"steps": sampling.num_steps, "rescale_t": sampling.shift}
    name = PLAIN if strength == 0 else GUIDED if sampling.interval is None else INTERVAL
    optional = {"cfg_strength": strength, "cfg_interval": list(sampling.interval or ())}
    parameters |= {key: value for key, value in optional.items() if key in PARAMETERS[name]}
    return {"name": name, "args": {"sigma_min": sampling.sigma_min}, "params": parameters}
