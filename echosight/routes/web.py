"""The page at `/`, its files under `/web/`, and what the server says about itself to callers that want JSON."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from echosight.routes.auth import admit, manager_of, settings_of
from echosight.routes.system import about

FOLDER = Path(__file__).parent.parent / "web"
SERVED = {".html", ".css", ".js", ".svg", ".woff2"}

# All that the page needs comes from here: nothing it does can send a voice or a picture elsewhere.
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
    """A file of the page as it is sent; `packed` where that is smaller."""

    body: bytes
    packed: bytes | None
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> File:
        body = path.read_bytes()
        packed = gzip.compress(body, mtime=0) if path.suffix != ".woff2" else None
        kind = {".js": "text/javascript", ".woff2": "font/woff2"}.get(path.suffix) or mimetypes.guess_type(path.name)[0]
        return cls(body, packed, kind or "application/octet-stream", hashlib.sha256(body).hexdigest()[:20])

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the caller has it already: it asks each time, so that it is never stale."""
        packed = self.packed if "gzip" in request.headers.get("accept-encoding", "") else None
        etag = f'"{self.etag}{"-gz" if packed else ""}"'
        headers = HEADERS | {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if packed:
            headers["Content-Encoding"] = "gzip"
        return Response(packed or self.body, headers=headers, media_type=self.media_type)


FILES = {
    path.relative_to(FOLDER).as_posix(): File.read(path) for path in sorted(FOLDER.rglob("*")) if path.suffix in SERVED
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root(request: Request) -> Response:
    """A browser gets the page; anybody else what this server is, and where its doors are. Raises `InputError` 401."""
    if "text/html" in request.headers.get("accept", ""):
        return FILES["index.html"].answer(request)
    admit(request)
    return JSONResponse(about(manager_of(request), settings_of(request)), headers={"Vary": "Accept"})


@router.get("/web/{name:path}")
async def file(name: str, request: Request) -> Response:
    """A file of the page."""
    if name not in FILES:
        raise HTTPException(404)
    return FILES[name].answer(request)
