"""The worker links of this node, as a whole: open, look up, end by token, tell of a stop."""

import heapq
from typing import Final

from cogflare.engine.accounts import CHANNEL_REVOKED, Accounts
from cogflare.engine.adoption import Ground, Port
from cogflare.engine.link import Link
from cogflare.protocol.messages import Restarting
from cogflare.store.base import Hint
from cogflare.store.catalog import Caller

_EXPIRED: Final = "the token of this worker has expired; ask for a new one, or a new join line"
_REVOKED: Final = "the token of this worker does not count any more; start it with a new one"


class Fleet:
    """The links of this node."""

    def __init__(self, ground: Ground, accounts: Accounts) -> None:
        self._ground = ground
        self._accounts = accounts
        self.node = ground.node
        self.links: dict[str, Link] = ground.links
        self.departed = ground.departed
        self._expiring: list[tuple[int, str]] = []
        ground.db.listen(self._heard)

    def open(self, caller: Caller, port: Port) -> Link:
        """Return the link of a socket that a worker's token opened."""
        if caller.expires_at is not None:
            entry = caller.expires_at, caller.token
            if entry not in self._expiring:
                heapq.heappush(self._expiring, entry)
        return Link(self._ground, caller, port)

    def stop(self) -> None:
        """Tell every agent to run on and come back, and take nothing more from the queue."""
        self._ground.dispatcher.stop()
        for link in list(self.links.values()):
            link.say(Restarting())
            link.flush()

    def expire(self) -> None:
        """End the links whose tokens have just expired: what they hold can then run elsewhere."""
        now = self._ground.clock.wall()
        while self._expiring and self._expiring[0][0] <= now:
            self.revoke(heapq.heappop(self._expiring)[1])

    async def check_tokens(self, *tokens: str) -> None:
        """End the links whose tokens (these, or any) are revoked or expired, whether or not this node heard of it."""
        for token in tokens or {link.caller.token for link in self.links.values()}:
            if not await self._accounts.is_valid(token):
                self.revoke(token)

    def revoke(self, token: str) -> None:
        """End the links of a token that no longer counts."""
        now = self._ground.clock.wall()
        for link in [link for link in self.links.values() if link.caller.token == token]:
            expires_at = link.caller.expires_at
            is_over = expires_at is not None and expires_at <= now
            link.reject(_EXPIRED if is_over else _REVOKED, 4401)

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_REVOKED:
            self.revoke(hint.payload)
