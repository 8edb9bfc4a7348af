"""Two servers: one whose predictions overflow to the other, which it knows as a provider with a key."""

from typing import Any

from support.processes import Server, Stage

LOOPBACK = "127.0.0.0/8"


class Pair:
    """`near` is where clients ask, `far` is what it overflows to; `via` is the far one's address, or a proxy's."""

    def __init__(
        self, stage: Stage, *, far: Server | None = None, via: str = "", kind: str = "cogflare", lease_s: str = "20"
    ) -> None:
        self.stage = stage
        self.far = far or stage.server()
        self.near = stage.server(outgoing_networks=LOOPBACK, lease_s=lease_s)
        self.key = stage.plant(self.far.token("api"))
        self.add("far", via or self.far.url, kind)

    def add(self, name: str, url: str, kind: str, **settings: Any) -> dict[str, Any]:
        """Make a provider of the near server, with the key of the far one."""
        order = {"kind": kind, "base_url": url, "key": self.key, **settings}
        added: dict[str, Any] = self.near.ask("PUT", f"/v1/providers/{name}", json=order)
        return added

    def route(self, route: object, model: str = "me/single") -> None:
        """Set the route of a model of the near server."""
        self.near.ask("PUT", f"/v1/models/{model}/route", json={"route": route})

    def far_runs(self) -> list[dict[str, Any]]:
        """Return the far server's own record of what it was given, newest first."""
        found: list[dict[str, Any]] = []
        path: str | None = "/v1/predictions"
        while path:
            page = self.far.ask("GET", path)
            found += page["results"]
            path = page["next"] and page["next"].removeprefix(self.far.url)
        return found

    def remote_ids(self, prediction: str) -> list[str]:
        """Return the runs at the far server that the near one's record of a prediction names."""
        attempts = self.near.ask("GET", f"/v1/predictions/{prediction}/receipt")["attempts"]
        return [attempt["remote_id"] for attempt in attempts if attempt["remote_id"]]
