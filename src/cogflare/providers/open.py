"""Opens the executor of a provider; the only place that knows which kinds there are."""

from importlib import import_module
from typing import cast

from cogflare.domain.clock import Clock
from cogflare.net.client import Client
from cogflare.providers.base import Executor

_DRIVERS = {
    "replicate": "cogflare.providers.replicate:Replicate",
    "cogflare": "cogflare.providers.cogflare:Cogflare",
    "runpod": "cogflare.providers.runpod:RunPod",
}


class Executors:
    """Opens executors that share the connections of one client. A driver is called with (site, clock)."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    def open(self, kind: str, base_url: str, key: str) -> Executor:
        """Return the executor for a key at an address; raises `ValueError` that says what is wrong with them."""
        driver = _DRIVERS.get(kind)
        if driver is None:
            raise ValueError(f"a provider is of the kind {', '.join(_DRIVERS)}, not {kind[:20]!r}")
        module, _, name = driver.partition(":")
        return cast(Executor, getattr(import_module(module), name)(self._client.site(base_url, key), self._clock))
