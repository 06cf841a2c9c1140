"""Short-lived tokens for browsers, and the public half of the key that signs webhooks."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from server import tokens
from server.access import JWKS_PATH, TOKENS_PATH, Access
from server.answers import key_id_of, read_body, reply
from server.errors import FalError, invalid

MAX_BODY = 65_536
JWKS_SECONDS = 3600


class TokenInput(BaseModel):
    """What `POST /tokens/` takes."""

    allowed_apps: Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=100)]
    token_expiration: int = Field(120, ge=1, le=3600)


def router(access: Access, jwks: dict[str, Any]) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(TOKENS_PATH)
    async def create(request: Request) -> Response:
        body = await read_body(request, limit=MAX_BODY)
        try:
            given = TokenInput.model_validate_json(body)
        except ValidationError as error:
            raise FalError(invalid(error)) from error
        return reply(
            tokens.issue(
                access.token_secret, key_id_of(request), apps=given.allowed_apps, seconds=given.token_expiration
            )
        )

    @routes.get(JWKS_PATH)
    async def keys() -> Response:
        return reply(jwks, headers={"cache-control": f"public, max-age={JWKS_SECONDS}"})

    return routes
