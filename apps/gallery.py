"""`fewstep gallery`: a local page for a folder of generated videos, pictures, meshes and proteins."""

import argparse
import asyncio
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

PORT = 8766
MOST_RESIDUES = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="folder with .mp4, .png, .glb, .pdb or .cif files, also below it"
    )
    parser.add_argument("--port", type=int, default=PORT, help="port; 0 picks a free one (%(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Serve the page on this machine until Ctrl-C."""
    import uvicorn

    from fewstep.apps.stream import listen

    if not 0 <= args.port <= 65_535:
        raise ValueError(f"--port must be in 0..65535, got {args.port}")
    app = create_gallery(args.folder)
    with listen("127.0.0.1", args.port) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        print(f"fewstep gallery of {args.folder} at {url}  (Ctrl-C ends it)", flush=True)
        if args.open:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        config = uvicorn.Config(app, log_config=None, log_level="warning", server_header=False)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
    return 0


def create_gallery(folder: Path) -> "FastAPI":
    """The application that shows what is in the folder now; what comes later is not served.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it that can be shown.
    """
    import importlib.resources

    from fastapi import FastAPI
    from fastapi.responses import FileResponse, JSONResponse, Response
    from fastapi.staticfiles import StaticFiles

    from fewstep import __version__
    from fewstep.apps.assets import (
        MEDIA_TYPES,
        Asset,
        find_assets,
        folder_records,
        for_browsers,
        protein_text,
        read_chains,
        shown,
    )
    from fewstep.apps.guard import Guard
    from fewstep.apps.problems import problem

    assets = find_assets(folder)
    # The generated documentation pages would load scripts from another host.
    app = FastAPI(title="fewstep gallery", version=__version__, docs_url=None, redoc_url=None)
    apps = importlib.resources.files("fewstep.apps")
    own, viewers = (Path(str(apps.joinpath(name))) for name in ("web/gallery", "viewers"))

    @app.get("/", include_in_schema=False)
    @app.get("/gallery", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(own / "index.html")

    @app.get("/v1/assets")
    async def listed() -> JSONResponse:
        rows = [
            {"name": asset.name, "kind": asset.kind, "url": f"/v1/assets/{number}"}
            | {"metrics": for_browsers(asset.metrics)}
            for number, asset in enumerate(assets)
        ]
        return JSONResponse(
            {"folder": shown(folder.resolve().name), "assets": rows, "records": folder_records(folder)}
        )

    @app.get("/v1/assets/{number}")
    async def one(number: int) -> Response:
        """The file as it is; only what was found at the start has a number."""
        if not 0 <= number < len(assets) or not assets[number].there:
            return problem(404, "unknown_asset", f"no asset number {number}")
        path = assets[number].path
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix.lower()])

    def protein(number: int) -> Asset | None:
        there = 0 <= number < len(assets) and assets[number].there and assets[number].kind == "protein"
        return assets[number] if there else None

    @app.get("/v1/assets/{number}/pdb")
    def as_pdb(number: int) -> Response:
        """A protein in PDB format, also where its file is mmCIF."""
        if (asset := protein(number)) is None:
            return problem(404, "unknown_asset", f"no protein number {number}")
        try:
            return Response(protein_text(asset.path), media_type=MEDIA_TYPES[".pdb"])
        except (ImportError, ValueError) as error:
            return problem(422, "unsupported", shown(f"{asset.name} cannot be drawn: {error}"))

    @app.get("/v1/assets/{number}/structure")
    def structure(number: int) -> Response:
        """Of a protein: secondary structure by P-SEA, a letter for each CA atom of each chain."""
        if (asset := protein(number)) is None:
            return problem(404, "unknown_asset", f"no protein number {number}")
        from fewstep.modalities.protein.design_table import measured

        try:
            chains = read_chains(asset.path)
        except (ImportError, ValueError) as error:
            return problem(422, "unsupported", shown(f"{asset.name} cannot be drawn: {error}"))
        if not chains or sum(map(len, chains.values())) > MOST_RESIDUES:
            return problem(422, "unsupported", f"{asset.name} has no chain that can be drawn")
        rows = measured(list(chains.values()))
        return JSONResponse({name: row["structure"] for name, row in zip(chains, rows, strict=True)})

    app.mount("/static/viewers", StaticFiles(directory=viewers), name="viewers")
    app.mount("/static", StaticFiles(directory=own), name="static")
    app.add_middleware(Guard)
    return app
