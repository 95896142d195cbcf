"""How the released students of Wan 2.1 generate: the numbers of their papers and configuration files.

Where the files lie on the hub is as the projects' own READMEs and configurations name them, for CausVid the
folder (that of its warped student as others' scripts name it); the file in it, ``model.pt``, is what its code
opens there. Nothing was downloaded to look.
"""

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch

from fewstep.core.schedules import shift, table_time
from fewstep.modalities.video.cache import CacheConfig

TABLE = 1000.0  # entries of the table that the released codes look times up in
FPS, HEIGHT, WIDTH = 16.0, 480, 832  # of all of them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One student's rollout.

    Args:
        paper: where it comes from.
        licence: of the repository that released it.
        source: owner/name/file on the hub.
        adapters: likewise, of those that its own configuration merges into the weights; empty for none.
        timesteps: the official list, falling from 1000; what stands for 0 at its end is not a step.
        warped: the list counts entries of the shifted table, instead of naming times.
        shift: of the table.
        cache: chunk, window and sink, in latent frames.
        context_noise: timestep at which a finished chunk enters the cache.
        refresh: at a new prompt, the window is computed anew under it (LongLive's KV-recache).
    """

    paper: str
    licence: str
    source: str
    timesteps: tuple[float, ...]
    warped: bool
    shift: float
    cache: CacheConfig
    context_noise: float = 0.0
    refresh: bool = False
    adapters: str = ""

    @property
    def times(self) -> tuple[float, ...]:
        """Of the denoising steps, in [0, 1]: what the released code's table makes of the list."""
        wanted = torch.tensor(self.timesteps, dtype=torch.float64) / TABLE
        if self.warped:
            return tuple(shift(wanted, self.shift).tolist())
        return tuple(table_time(wanted, scale=self.shift).tolist())

    def card(self, name: str) -> dict[str, Any]:
        """What ``pipeline.json`` says of the rollout."""
        steps = len(self.timesteps)
        return {
            "name": name,
            "paper": self.paper,
            "fps": FPS,
            "height": HEIGHT,
            "width": WIDTH,
            "cache": asdict(self.cache),
            "step_grids": {str(steps): list(self.times)},
            "default_steps": steps,
            "context_time": self.context_noise / TABLE,
            "refresh_on_switch": self.refresh,
        }


FOUR = (1000.0, 750.0, 500.0, 250.0)
LONGLIVE = "Efficient-Large-Model/LongLive-1.3B/models"

RECIPES = MappingProxyType(
    {
        "self-forcing": Recipe(
            paper="Self Forcing, arXiv 2506.08009",
            licence="Apache-2.0",
            source="gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt",
            timesteps=FOUR,
            warped=True,
            shift=5.0,
            # trained on clips of 21 latent frames, all of which its cache keeps
            cache=CacheConfig(window=21, chunk=3, sink=0, sink_mode="none", decay=1.0),
        ),
        "causvid": Recipe(
            paper="CausVid, arXiv 2412.07772",
            licence="CC-BY-NC-SA-4.0",
            source="tianweiy/CausVid/autoregressive_checkpoint/model.pt",
            timesteps=(1000.0, 757.0, 522.0),
            warped=False,
            shift=8.0,
            cache=CacheConfig(window=21, chunk=3, sink=0, sink_mode="none", decay=1.0),
        ),
        "causvid-warped": Recipe(
            paper="CausVid in four warped steps, arXiv 2412.07772",
            licence="CC-BY-NC-SA-4.0",
            source="tianweiy/CausVid/autoregressive_checkpoint_warp_4step_cfg2/model.pt",
            timesteps=FOUR,
            warped=True,
            shift=8.0,
            cache=CacheConfig(window=21, chunk=3, sink=0, sink_mode="none", decay=1.0),
        ),
        "reward-forcing": Recipe(
            paper="Reward Forcing, arXiv 2512.04678",
            licence="Apache-2.0",
            source="JaydenLu666/Reward-Forcing-T2V-1.3B/rewardforcing.pt",
            timesteps=FOUR,
            warped=True,
            shift=5.0,
            cache=CacheConfig(window=9, chunk=3, sink=3, sink_mode="ema", decay=0.999),
        ),
        "longlive": Recipe(
            paper="LongLive, arXiv 2509.22622",
            licence="Apache-2.0",
            source=f"{LONGLIVE}/longlive_base.pt",
            timesteps=FOUR,
            warped=True,
            shift=5.0,
            cache=CacheConfig(
                window=12, chunk=3, sink=3, sink_mode="first", decay=1.0, sink_position="fixed"
            ),
            refresh=True,
            adapters=f"{LONGLIVE}/lora.pt",
        ),
        "longlive-infinity": Recipe(
            paper="LongLive with positions within the window, arXiv 2509.22622",
            licence="Apache-2.0",
            source=f"{LONGLIVE}/longlive_base.pt",
            timesteps=FOUR,
            warped=True,
            shift=5.0,
            cache=CacheConfig(window=12, chunk=3, sink=3, sink_mode="first", decay=1.0),
            refresh=True,
            adapters=f"{LONGLIVE}/lora.pt",
        ),
    }
)


def recipe(name: str) -> Recipe:
    """The recipe of this name."""
    if name not in RECIPES:
        raise ValueError(f"recipe={name!r} is not known; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


SIGNS = MappingProxyType(
    {
        "self_forcing": "self-forcing",
        "rewardforcing": "reward-forcing",
        "longlive": "longlive",
        "autoregressive_checkpoint": "causvid",
        "autoregressive_checkpoint_warp_4step": "causvid-warped",
    }
)
"""What the released files and folders of a student are called; a longer sign says more than one in it."""


def guessed_recipe(file_name: str) -> str | None:
    """The recipe whose released file or folder has this name; None where none has, or several."""
    wanted = file_name.lower()
    found = [sign for sign in SIGNS if sign in wanted or sign.replace("_", "-") in wanted]
    longest = [sign for sign in found if not any(sign != other and sign in other for other in found)]
    return SIGNS[longest[0]] if len(longest) == 1 else None
