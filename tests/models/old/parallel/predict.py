"""Two runs at once or none: each waits until another one has begun."""

import asyncio

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    async def setup(self) -> None:
        self.waiting = None

    async def predict(self, name: str = Input(description="Who is running")) -> str:
        if self.waiting is None:
            self.waiting = asyncio.get_running_loop().create_future()
            await self.waiting
        else:
            self.waiting.set_result(None)
            self.waiting = None
        return name
