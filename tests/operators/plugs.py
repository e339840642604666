"""Plugins as an operator would write them."""

from __future__ import annotations

from typing import Any

from empd.connectors.failures import RefusedByService
from empd.connectors.plugins import Plugin


class Stamp(Plugin):
    """Adds a word to the payload before, and to the result after."""

    name = "stamp"
    version = "2"

    def __init__(self, word: str = "stamped") -> None:
        self.word = word
        self.connector = ""

    async def initialize(self, connector: Any) -> None:
        self.connector = type(connector).__name__

    async def before_job_process(self, job: Any, context: Any) -> Any:
        return job.with_payload({**context.payload, "words": [*context.payload.get("words", []), self.word]})

    async def after_job_process(self, job: Any, result: Any, context: Any) -> Any:
        return {**result, "after": [*result.get("after", []), self.word], "connector": self.connector}


class Second(Stamp):
    name = "second"


class Broken(Plugin):
    """Fails in every hook."""

    name = "broken"

    def before_job_process(self, job: Any, context: Any) -> Any:
        raise RuntimeError("before is broken")

    async def after_job_process(self, job: Any, result: Any, context: Any) -> Any:
        raise RuntimeError("after is broken")


class Policy(Plugin):
    """Refuses what it does not like."""

    name = "policy"

    async def before_job_process(self, job: Any, context: Any) -> None:
        if context.payload.get("bad"):
            raise RefusedByService("the policy says no")
