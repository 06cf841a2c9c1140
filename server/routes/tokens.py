"""Short-lived tokens for browsers, and the public half of the key that signs webhooks."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from server.access import JWKS_PATH, TOKENS_PATH, Access
from server.answers import key_id_of, read_body, reply
from server.errors import FalError, invalid
from server.shared import JWKS_SECONDS
from server.signing import Signer


class TokenInput(BaseModel):
    """What `POST /tokens/` takes."""

    allowed_apps: Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=100)]
    token_expiration: int = Field(120, ge=1, le=3600)


def router(access: Access, signer: Signer) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(TOKENS_PATH)
    async def create(request: Request) -> Response:
        try:
            given = TokenInput.model_validate_json(await read_body(request))
        except ValidationError as error:
            raise FalError(invalid(error)) from error
        key_id = key_id_of(request)
        return reply(access.tokens.token(key_id, apps=given.allowed_apps, seconds=given.token_expiration))

    @routes.get(JWKS_PATH)
    async def keys() -> Response:
        return reply(signer.jwks(), headers={"cache-control": f"public, max-age={JWKS_SECONDS}"})

    return routes
