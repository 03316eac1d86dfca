"""`/vision/frame` and `/vision/frame_b64`: one picture in, its description as JSON out."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from echosight.conversation import new_id
from echosight.errors import InputError
from echosight.media import ImageFrame
from echosight.routes.auth import check_uid, owner_of, require_token
from echosight.routes.dependencies import BodyDep, ReadyManagerDep, SettingsDep, body_chunks, settings_of
from echosight.server.frames import FrameAnalyst, FrameRequest
from echosight.server.manager import LARGE_BYTES
from echosight.vision.images import read_image
from echosight.wire.fields import decode_base64, first_fault, read_data_uri, read_json

Json = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)

MAX_PROMPT_CHARS = 8_192
MAX_METADATA_BYTES = 4_096

router = APIRouter(tags=["Vision"], dependencies=[Depends(require_token)])


class FrameFields(BaseModel):
    """What both routes take beside the picture. Unknown fields are ignored; an empty one counts as left out."""

    model_config = ConfigDict(extra="ignore")

    session_id: str | None = Field(None, max_length=256)
    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS)
    language: str | None = Field(None, max_length=35, pattern=r"^(?:[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*)?$")


class FrameBody(FrameFields):
    """The body of POST /vision/frame_b64. `image_b64` is base64, or a ``data:`` URI."""

    image_b64: str
    metadata: Json | None = None


class FrameAnswer(BaseModel):
    """The answer of both routes. `session_id` is the client's, or a new one."""

    session_id: str
    description: str
    risks: list[str]
    suggestions: list[str]
    model: str
    elapsed_ms: int


class FormInMemory(MultiPartParser):
    """Parses a form without writing it to disk, where nothing may be kept of what a user shows."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.headers, body_chunks(request), max_files=1, max_fields=16)
        # SpooledTemporaryFile moves to the disk beyond this size.
        self.spool_max_size = settings_of(request).max_body_bytes + 1


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **{key: {"type": "string"} for key in FrameFields.model_fields},
                    },
                }
            }
        },
    }
}
_JSON = {"requestBody": {"required": True, "content": {"application/json": {"schema": FrameBody.model_json_schema()}}}}


@router.post("/vision/frame", openapi_extra=_FORM)
async def frame(request: Request, manager: ReadyManagerDep, settings: SettingsDep) -> FrameAnswer:
    """Describe the picture in the form's `file`."""
    began = time.monotonic()
    form = await _read_form(request)
    fields = _validate(FrameFields, {key: value for key, value in form.items() if key != "file"})
    file = form.get("file")
    if file is None:
        raise InputError("file: the form has no picture", code="missing_required_parameter", param="file")
    if isinstance(file, str):
        raise InputError("file must be a file, not text", code="invalid_type", param="file")
    data = await file.read()
    await file.close()
    # Decoding takes long whatever the file's size, so it always runs in the thread.
    picture = await manager.parse(LARGE_BYTES, lambda: _picture(data, settings.max_image_pixels, "file"))
    return await _answer(request, began, fields, picture)


@router.post("/vision/frame_b64", openapi_extra=_JSON)
async def frame_b64(request: Request, manager: ReadyManagerDep, settings: SettingsDep, body: BodyDep) -> FrameAnswer:
    """Describe the picture in `image_b64`."""
    began = time.monotonic()

    def read() -> tuple[FrameBody, ImageFrame]:
        fields = _validate(FrameBody, read_json(body))
        text = fields.image_b64
        is_uri = text[:5].lower() == "data:"
        data = read_data_uri(text) if is_uri else decode_base64(text, "image_b64", code="invalid_image")
        return fields, _picture(data, settings.max_image_pixels, "image_b64")

    fields, picture = await manager.parse(LARGE_BYTES, read)
    return await _answer(request, began, fields, picture, _metadata_text(fields.metadata))


def _metadata_text(metadata: Json | None) -> str:
    """The metadata as JSON, for the model. Raises `InputError` where it is too large."""
    try:
        text = orjson.dumps(metadata) if metadata else b""
    except TypeError:  # orjson reads 1024 levels and writes 254
        raise InputError("metadata is nested too deeply", code="invalid_value", param="metadata") from None
    if len(text) > MAX_METADATA_BYTES:
        message = f"metadata is larger than {MAX_METADATA_BYTES} bytes"
        raise InputError(message, code="invalid_value", param="metadata")
    return text.decode()


async def _answer(
    request: Request, began: float, fields: FrameFields, picture: ImageFrame, metadata: str = ""
) -> FrameAnswer:
    analyst: FrameAnalyst = request.app.state.frames
    session_id = fields.session_id or new_id("vision")
    description = await analyst.describe(
        FrameRequest(picture, _caller(request), session_id, fields.prompt, fields.language or None, metadata)
    )
    return FrameAnswer(
        session_id=session_id,
        **description.model_dump(),
        model=request.app.state.manager.engine.name,
        elapsed_ms=round((time.monotonic() - began) * 1000),
    )


def _caller(request: Request) -> str:
    """Whose session it is: the owner of the token, and where there is one the header `uid`."""
    return f"{owner_of(request)}/{check_uid(request.headers.get('uid', ''))}"


def _picture(data: bytes, max_pixels: int, param: str) -> ImageFrame:
    if not data:
        raise InputError(f"{param} is empty", code="invalid_image", param=param)
    return read_image(data, max_pixels)


async def _read_form(request: Request) -> FormData:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InputError("Send multipart/form-data with the picture in the field file", code="invalid_request")
    try:
        return await FormInMemory(request).parse()
    except MultiPartException as error:
        raise InputError(f"Broken form: {error.message}", code="invalid_request") from error
    except (KeyError, UnicodeError, LookupError) as error:
        raise InputError("Broken form: its boundary or charset is unusable", code="invalid_request") from error


def _validate(model: type[Model], value: Any) -> Model:
    """The value as a model. Raises `InputError` that names the field at fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        fault = first_fault(error, value)
        code = "missing_required_parameter" if fault.kind == "missing" else "invalid_value"
        raise InputError(f"{fault.path or 'body'}: {fault.message}", code=code, param=fault.path or None) from error
