"""GET /v1/jobs: the broker's unfinished jobs first, then history's ended ones, page by page.

A cursor is opaque to the client: `b….…` goes on in the broker's list, `h…` in history.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp import web

from empd.errors import NotRunning
from empd.job import JobFilter, Outcome, State
from empd.result import JobStatus
from empd.store.history import Filter
from empd.web import context, records, render
from empd.web.jobs import reply
from empd.web.problems import invalid

LIMIT_DEFAULT, LIMIT_MAX = 100, 1000
TEXT_CHARS_MAX = 256

_LIVING = [state.name.lower() for state in State if state is not State.DEAD]
"""What the broker lists where no state is asked for; dead-lettered jobs have ended and come from history."""

UNFINISHED = {state.name.lower() for state in State}
ENDED = {outcome.label: outcome for outcome in Outcome}
_PLAIN = ("service", "customer_id", "workflow_id", "worker")
_CURSOR = re.compile(r"b(\d{1,19})\.(\d{1,20})|h(\d{1,19})", re.ASCII)
_KNOWN = {*_PLAIN, "state", "limit", "cursor"}


class Wanted:
    """The query, checked. Raises Problem with the key of what is wrong."""

    def __init__(self, query: Any) -> None:
        self.plain = {name: _text(query, name) for name in _PLAIN}
        self.labels = {key.removeprefix("label."): value for key, value in query.items() if key.startswith("label.")}
        for key in query:
            if key not in _KNOWN and not key.startswith("label."):
                raise invalid(f"query.{key[:50]}", f"unknown; accepted: {', '.join(sorted(_KNOWN))}, label.NAME")
        states = [text for value in query.getall("state", []) for text in value.split(",") if text]
        for state in states:
            if state not in UNFINISHED and state not in ENDED:
                accepted = ", ".join([*sorted(UNFINISHED), *ENDED])
                raise invalid("query.state", f"{state[:50]!r} is none; accepted: {accepted}")
        self.unfinished = [state for state in states if state in UNFINISHED]
        self.ended = [ENDED[state] for state in states if state in ENDED]
        self.any_state = not states
        self.limit = _limit(query.get("limit"))
        self.place, self.cursor, self.after = _cursor(query.get("cursor"))

    @property
    def wants_unfinished(self) -> bool:
        """Whether the broker is to be asked."""
        return self.place != "h" and (self.any_state or bool(self.unfinished))

    @property
    def wants_ended(self) -> bool:
        """Whether history is to be asked."""
        return self.any_state or bool(self.ended)

    def broker_filter(self) -> JobFilter:
        """As the broker takes it."""
        return JobFilter(
            **self.plain,
            states=self.unfinished or _LIVING,
            labels=self.labels or None,
            cursor=self.cursor,
            limit=self.limit,
            after=self.after,
        )

    def history_filter(self, outcome: int | None) -> Filter:
        """As history takes it: one outcome and one label are searched, more labels are tried afterwards."""
        label = next(iter(self.labels.items()), None)
        plain = self.plain
        return Filter(
            service=plain["service"],
            customer_id=plain["customer_id"],
            workflow_id=plain["workflow_id"],
            worker=plain["worker"],
            outcome=outcome,
            label=label,
        )

    def fits(self, labels: dict[str, str]) -> bool:
        """Whether a record has all the labels."""
        return all(labels.get(key) == value for key, value in self.labels.items())


def _text(query: Any, name: str) -> str | None:
    value: str | None = query.get(name)
    if value is not None and len(value) > TEXT_CHARS_MAX:
        raise invalid(f"query.{name}", f"at most {TEXT_CHARS_MAX} characters")
    return value


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= LIMIT_MAX:
        raise invalid("query.limit", f"a whole number from 1 to {LIMIT_MAX}, not {text[:50]!r}")
    return int(text)


def _cursor(text: str | None) -> tuple[str, int, int]:
    """In which list the page goes on, from where, and in the broker's list after which job."""
    if text is None:
        return "", 0, 0
    match = _CURSOR.fullmatch(text)
    if match is None or int(match[1] or match[3]) >= 1 << 63 or int(match[2] or 0) >= 1 << 64:
        raise invalid("query.cursor", "what an earlier page returned as `cursor`")
    return text[0], int(match[1] or match[3]), int(match[2] or 0)


async def list_jobs(request: web.Request) -> web.Response:
    """GET /v1/jobs: filters service, state (repeatable, or separated by commas), customer_id, workflow_id, worker,
    label.NAME; limit and cursor. The answer's `cursor` is null on the last page."""
    ctx = context.of(request)
    wanted = Wanted(request.query)
    bodies: list[Any] = []
    error = ""
    if wanted.wants_unfinished:
        try:
            jobs, following = await ctx.gateway.page(wanted.broker_filter())
        except NotRunning as problem:
            if not wanted.wants_ended:
                raise
            jobs, following, error = [], None, str(problem)
        bodies = [unfinished(job) for job in jobs]
        if following is not None:
            return reply({"jobs": bodies, "cursor": "b{}.{}".format(*following), "broker_error": error})
    cursor: str | None = None
    if wanted.wants_ended:
        if len(bodies) >= wanted.limit:
            cursor = f"h{(1 << 63) - 1}"
        else:
            ended, cursor = await _ended(ctx, wanted, wanted.limit - len(bodies), {body["id"] for body in bodies})
            bodies += ended
    return reply({"jobs": bodies, "cursor": cursor, "broker_error": error})


def unfinished(job: Any) -> dict[str, Any]:
    """One of the broker's list, where jobs come as plain data: the fields of a JobStatus, by name."""
    fields = [job.get(name) for name in JobStatus.__struct_fields__]
    return render.unfinished(msgspec.convert(fields, JobStatus))


async def _ended(
    ctx: context.Context, wanted: Wanted, limit: int, listed: set[str]
) -> tuple[list[dict[str, Any]], str | None]:
    before = wanted.cursor if wanted.place == "h" else None
    if before == (1 << 63) - 1:
        before = None
    outcome = wanted.ended[0] if len(wanted.ended) == 1 else None
    several = set(wanted.ended) if len(wanted.ended) > 1 else None
    found, following = await ctx.archive.call(
        lambda history: history.search(wanted.history_filter(outcome), before, limit)
    )
    retried = await _retried(ctx, [record.id for record in found if record.outcome == Outcome.DEAD])
    bodies = [
        records.summary(record)
        for record in found
        if (several is None or record.outcome in several) and wanted.fits(record.labels) and record.id not in retried
    ]
    return [body for body in bodies if body["id"] not in listed], None if following is None else f"h{following}"


async def _retried(ctx: context.Context, dead: list[int]) -> set[int]:
    """The dead-lettered jobs that got another chance: history does not know that they wait or run again."""
    if not dead:
        return set()
    try:
        _, statuses = await ctx.gateway.look(dead)
    except NotRunning:
        return set()
    return {status.id for status in statuses if status.state not in ("unknown", State.DEAD.name.lower())}
