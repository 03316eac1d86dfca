"""The page at `/` and its files under `/web/`; clients that do not ask for HTML get information about the API."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from echosight.routes.auth import require_token
from echosight.routes.dependencies import ManagerDep, SettingsDep
from echosight.routes.system import api_info

FOLDER = Path(__file__).parent.parent / "web"
SERVED = {".html", ".css", ".js", ".svg", ".woff2"}

# The page loads everything from this server, and can send speech and images nowhere else.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), display-capture=(self), screen-wake-lock=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page. `gzipped` is None for formats that are compressed already."""

    body: bytes
    gzipped: bytes | None
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> File:
        body = path.read_bytes()
        gzipped = gzip.compress(body, mtime=0) if path.suffix != ".woff2" else None
        media_type = {".js": "text/javascript", ".woff2": "font/woff2"}.get(path.suffix) or mimetypes.guess_type(
            path.name
        )[0]
        return cls(body, gzipped, media_type or "application/octet-stream", hashlib.sha256(body).hexdigest()[:20])

    def response(self, request: Request) -> Response:
        """The file, or 304 where the browser has it. Browsers ask every time, so that no file is stale."""
        gzipped = self.gzipped if "gzip" in request.headers.get("accept-encoding", "") else None
        etag = f'"{self.etag}{"-gz" if gzipped else ""}"'
        headers = HEADERS | {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if gzipped:
            headers["Content-Encoding"] = "gzip"
        return Response(gzipped or self.body, headers=headers, media_type=self.media_type)


FILES = {
    path.relative_to(FOLDER).as_posix(): File.read(path) for path in sorted(FOLDER.rglob("*")) if path.suffix in SERVED
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root(request: Request, manager: ManagerDep, settings: SettingsDep) -> Response:
    """A browser gets the page, any other client information about the API. Raises `InputError` 401."""
    if "text/html" in request.headers.get("accept", ""):
        return FILES["index.html"].response(request)
    require_token(request)
    return JSONResponse(api_info(manager, settings), headers={"Vary": "Accept"})


@router.get("/web/{name:path}")
async def file(name: str, request: Request) -> Response:
    """A file of the page."""
    if name not in FILES:
        raise HTTPException(404)
    return FILES[name].response(request)
