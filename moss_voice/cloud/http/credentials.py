"""What a server is shown: the project's key, or a token that the user's authenticator gives."""

from __future__ import annotations

import re
from typing import Final

from moss_voice.cloud.contract import Authenticator
from moss_voice.errors import AuthenticationError

__all__ = ["Credentials", "checked_credential"]

_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


def checked_credential(text: str, what: str) -> str:
    """Return a key or token that a header can carry as it is; what came is never quoted."""
    if not _VISIBLE.fullmatch(text):
        raise AuthenticationError(
            f"{what}: expected letters, digits and signs of ASCII without spaces, as the server gives"
            " them out"
        )
    return text


class Credentials:
    """The key, or tokens in its place, of which the last is kept until the server refuses it."""

    def __init__(self, key: str | None, authenticator: Authenticator | None) -> None:
        """Note what there is.

        Raises:
            AuthenticationError: If the key cannot be one.
        """
        self.key = None if not key else checked_credential(key, "the project key")
        self._authenticator = authenticator
        self._token: str | None = None

    @property
    def renewable(self) -> bool:
        """Whether there is an authenticator, which goes before any key."""
        return self._authenticator is not None

    async def token(self, refused: str | None) -> str | None:
        """Return a token, another one than was refused; None without an authenticator.

        Of many that were refused the same token, one asks, if the callers take turns.
        """
        if self._authenticator is not None and (self._token is None or self._token == refused):
            self._token = None
            self._token = await _new_token(self._authenticator)
        return self._token


async def _new_token(authenticator: Authenticator) -> str:
    try:
        token = await authenticator()
    except Exception as error:  # noqa: BLE001 - the user's own
        # What it says may hold a token.
        raise AuthenticationError(
            f"the authenticator raised {type(error).__name__} in place of a token"
        ) from None
    if not isinstance(token, str):
        raise AuthenticationError(
            f"the authenticator returned a {type(token).__name__}; expected a token, a str"
        )
    return checked_credential(token, "the authenticator's token")
