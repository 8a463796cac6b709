"""Where spans are to be sent, in a form that may be in a file: no key, and yet no two organizations mix."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mackerel_otel_server.settings import Settings

_SALT_BYTES: Final = 16
_BYTES: Final = 8
"""Few: many keys have the same fingerprint, so that nobody can find out a key by trying."""


class Destination:
    """An endpoint with the key and the headers that it gets.

    Attributes:
        shown: The endpoint as a log may show it.
    """

    def __init__(self, settings: Settings, api_key: str | None) -> None:
        self.shown: Final = settings.shown_endpoint
        self._secret = json.dumps([settings.endpoint, api_key, sorted(settings.headers.items())]).encode()

    def described(self) -> dict[str, str]:
        """Return what a file says about its destination. The salt is another one each time."""
        salt = secrets.token_bytes(_SALT_BYTES)
        return {"endpoint": self.shown, "salt": salt.hex(), "fingerprint": self._fingerprint(salt)}

    def is_of(self, about: Mapping[str, Any]) -> bool:
        """Tell whether what a file says describes this destination."""
        try:
            salt = bytes.fromhex(about["salt"])
            return hmac.compare_digest(self._fingerprint(salt), about["fingerprint"])
        except (KeyError, TypeError, ValueError):
            return False

    def _fingerprint(self, salt: bytes) -> str:
        return hashlib.blake2b(self._secret, key=salt[:_SALT_BYTES], digest_size=_BYTES).hexdigest()
