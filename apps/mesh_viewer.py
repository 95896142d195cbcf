"""A local page that shows GLB files; `fewstep mesh --view` opens it. Nothing loads from elsewhere."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from fewstep import __version__
from fewstep.apps.guard import Guard
from fewstep.apps.problems import problem

GLB_MEDIA_TYPE = "model/gltf-binary"


def create_viewer(files: Sequence[Path]) -> FastAPI:
    """The application that shows these files, in this order.

    Raises:
        ValueError: without files, or for one that is not a .glb.
        FileNotFoundError: for one that does not exist.
    """
    if not files:
        raise ValueError("nothing to view: give at least one .glb file")
    for file in files:
        if file.suffix.lower() != ".glb":
            raise ValueError(f"{file} cannot be viewed here; the page shows .glb files")
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}")
    # The generated documentation pages would load scripts from another host.
    app = FastAPI(title="fewstep meshes", version=__version__, docs_url=None, redoc_url=None)
    apps = importlib.resources.files("fewstep.apps")
    web, viewers = (Path(str(apps.joinpath(name))) for name in ("mesh_page", "viewers"))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(web / "index.html")

    @app.get("/v1/files")
    async def listed() -> JSONResponse:
        named = [{"name": file.name, "url": f"/v1/files/{n}.glb"} for n, file in enumerate(files)]
        return JSONResponse(named)

    @app.get("/v1/files/{number}.glb")
    async def one(number: int) -> Response:
        if not 0 <= number < len(files) or not files[number].is_file():
            return problem(404, "unknown_file", f"no file number {number}")
        return FileResponse(files[number], media_type=GLB_MEDIA_TYPE)

    app.mount("/static/viewers", StaticFiles(directory=viewers), name="viewers")
    app.mount("/static", StaticFiles(directory=web), name="static")
    app.add_middleware(Guard)
    return app
