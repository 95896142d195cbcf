"""A local page that shows designs; `fewstep protein --view` opens it. Nothing loads from elsewhere."""

import importlib.resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from fewstep import __version__
from fewstep.apps.assets import for_browsers
from fewstep.apps.guard import Guard
from fewstep.apps.server import problem
from fewstep.modalities.protein.backbone import completed
from fewstep.modalities.protein.files import structure_bytes
from fewstep.modalities.protein.shards import Shard, ShardFolder

MOST_LISTED = 5000
HIDDEN = ("file", "structure", "sequence")  # too long for a line of the list; the design itself has them


def create_viewer(folder: Path) -> FastAPI:
    """The application that shows the finished designs of a run.

    Raises:
        FileNotFoundError: the folder is of no run, or no design of it is finished.
    """
    run = ShardFolder.existing(folder)
    finished = [shard for shard in range(len(run)) if run.is_finished(shard)]
    if not finished:
        raise FileNotFoundError(f"{folder} holds no finished design yet; run fewstep protein -o {folder}")
    # The generated documentation pages would load scripts from another host.
    app = FastAPI(title="fewstep proteins", version=__version__, docs_url=None, redoc_url=None)
    apps = importlib.resources.files("fewstep.apps")
    web, viewers = (Path(str(apps.joinpath(name))) for name in ("protein_page", "viewers"))

    def design(number: int) -> tuple[Shard, int] | None:
        shard = number // run.size
        if shard not in finished or number not in run.designs(shard):
            return None
        return run.read(shard), number - run.designs(shard).start

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(web / "index.html")

    @app.get("/v1/designs")
    async def listed() -> JSONResponse:
        rows = []
        for shard in finished:
            shown = ({k: v for k, v in row.items() if k not in HIDDEN} for row in run.read(shard).rows)
            rows += map(for_browsers, shown)
            if len(rows) >= MOST_LISTED:
                break
        return JSONResponse(
            {"name": folder.resolve().name, "total": run.count, "designs": rows[:MOST_LISTED]}
        )

    @app.get("/v1/designs/{number}.pdb")
    async def pdb(number: int) -> Response:
        if (found := design(number)) is None:
            return problem(404, "unknown_design", f"no finished design number {number}")
        shard, place = found
        sequence = shard.rows[place].get("sequence")
        content = structure_bytes(
            completed([shard.chains[place]])[0],
            kind="pdb",
            title=f"fewstep design {number}",
            sequence=sequence if isinstance(sequence, str) else None,
        )
        return Response(content, media_type="chemical/x-pdb")

    @app.get("/v1/designs/{number}")
    async def one(number: int) -> Response:
        if (found := design(number)) is None:
            return problem(404, "unknown_design", f"no finished design number {number}")
        shard, place = found
        return JSONResponse(
            {"row": for_browsers(shard.rows[place]), "ca": shard.chains[place].round(3).tolist()}
        )

    app.mount("/static/viewers", StaticFiles(directory=viewers), name="viewers")
    app.mount("/static", StaticFiles(directory=web), name="static")
    app.add_middleware(Guard)
    return app
