"""The rest host's upload routes, which say where to upload, and the cdn host's, which take the bytes."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from server.access import Access
from server.answers import caller, holder_of, read_body, reply
from server.errors import FalError, invalid, plain
from server.terms import lifetime
from server.tokens import Holder, Slot
from server.uploads import ANY_TYPE, Uploads, new_slot


class Announced(BaseModel):
    """What is said of a file before it is uploaded."""

    file_name: str = ""
    content_type: str = ANY_TYPE


class Part(BaseModel):
    """One part of an upload, as its answer named it."""

    number: int = Field(alias="partNumber")
    etag: str


class Parts(BaseModel):
    """The parts that a file is made of."""

    parts: list[Part]


def router(uploads: Uploads, access: Access) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post("/rest/storage/auth/token")
    async def token(request: Request) -> Response:
        text, ends = access.tokens.upload_token(holder_of(request))
        answer = {
            "token": text,
            "token_type": "Bearer",
            "base_url": caller(request).origin,
            "expires_at": datetime.fromtimestamp(ends, UTC).isoformat(),
        }
        return reply(answer)

    @routes.post("/rest/storage/upload/initiate")
    @routes.post("/rest/storage/upload/initiate-multipart")
    async def initiate(request: Request) -> Response:
        try:
            given = Announced.model_validate_json(await read_body(request))
        except ValidationError as error:
            raise FalError(invalid(error)) from error
        holder = holder_of(request)
        slot = new_slot(given.file_name, given.content_type, key_id=holder.key_id, keep_for=lifetime(request.headers))
        url, ticket = _url(request, slot), access.tokens.ticket(slot, until=holder.until)
        return reply({"upload_url": f"{url}?ticket={ticket}", "file_url": url})

    @routes.post("/files/upload")
    async def upload(request: Request) -> Response:
        slot = _announced(request, _holder(request))
        await uploads.put(slot, request.stream())
        return reply({"access_url": _url(request, slot)})

    @routes.post("/files/upload/multipart")
    async def create(request: Request) -> Response:
        holder = _holder(request)
        slot = _announced(request, holder)
        return reply({"access_url": _url(request, slot), "uploadId": access.tokens.ticket(slot, until=holder.until)})

    @routes.put("/files/{file_id}/{name}")
    async def put(request: Request, file_id: str, name: str) -> Response:
        slot = _slot(request.query_params.get("ticket", ""), file_id, name)
        return _received(await uploads.put(slot, request.stream()))

    @routes.put("/files/{file_id}/{name}/{number}")
    async def put_part(request: Request, file_id: str, name: str, number: str) -> Response:
        slot = _slot(request.query_params.get("ticket", ""), file_id, name)
        return await _put_part(request, slot, number)

    @routes.put("/files/{file_id}/{name}/multipart/{ticket}/{number}")
    async def put_held_part(request: Request, file_id: str, name: str, ticket: str, number: str) -> Response:
        return await _put_part(request, _held(request, _slot(ticket, file_id, name)), number)

    @routes.post("/files/{file_id}/{name}/complete")
    async def complete(request: Request, file_id: str, name: str) -> Response:
        return await _complete(request, _slot(request.query_params.get("ticket", ""), file_id, name))

    @routes.post("/files/{file_id}/{name}/multipart/{ticket}/complete")
    async def complete_held(request: Request, file_id: str, name: str, ticket: str) -> Response:
        return await _complete(request, _held(request, _slot(ticket, file_id, name)))

    async def _put_part(request: Request, slot: Slot, number: str) -> Response:
        if not number.isascii() or not number.isdigit() or len(number) > 5:
            raise FalError(plain("bad_request", f"The part is number {number!r}, which is no number"))
        return _received(await uploads.put_part(slot, int(number), request.stream()), number=int(number))

    async def _complete(request: Request, slot: Slot) -> Response:
        try:
            given = Parts.model_validate_json(await read_body(request))
        except ValidationError as error:
            raise FalError(invalid(error)) from error
        await uploads.complete(slot, [(part.number, part.etag.strip('"')) for part in given.parts])
        return reply({"access_url": _url(request, slot)})

    def _holder(request: Request) -> Holder:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        holder = access.tokens.holder(text.strip()) if scheme.lower() == "bearer" else None
        if holder is not None and access.may_upload(holder.key_id):
            return holder
        if access.may_upload(None):
            return Holder(None)
        message = "An upload needs a token of /storage/auth/token in the header Authorization, after Bearer"
        raise FalError(plain("unauthorized", message))

    def _held(request: Request, slot: Slot) -> Slot:
        # why: another key is not told that there is such an upload
        if slot.key_id != _holder(request).key_id:
            raise FalError(plain("not_found", "There is no such upload"))
        return slot

    def _slot(ticket: str, file_id: str, name: str) -> Slot:
        slot = access.tokens.slot(ticket)
        if slot is None or (slot.file_id, slot.name) != (file_id, name) or not access.may_upload(slot.key_id):
            raise FalError(plain("forbidden", "This is no address to upload to, or its time is over"))
        return slot

    return routes


def _announced(request: Request, holder: Holder) -> Slot:
    headers = request.headers
    return new_slot(
        headers.get("x-fal-file-name", ""),
        headers.get("content-type", ANY_TYPE),
        key_id=holder.key_id,
        keep_for=lifetime(headers),
    )


def _received(sha256: str, *, number: int | None = None) -> Response:
    """Python reads a part's digest from the header, JavaScript from the body."""
    etag = f'"{sha256}"'
    part = {} if number is None else {"partNumber": number}
    return reply(part | {"etag": etag}, headers={"etag": etag})


def _url(request: Request, slot: Slot) -> str:
    return f"{caller(request).origin}/files/{slot.file_id}/{slot.name}"
