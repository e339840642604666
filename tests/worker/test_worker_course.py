"""What stands around a connector's `process`: nothing where nothing is wanted, bounded records elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec
import pytest

from empd.connectors import registry
from empd.connectors.base import ConnectorConfig, Result, Service, Site
from empd.connectors.context import Context, JobDetails, JobView
from empd.connectors.failures import InvalidInput, RateLimited
from empd.connectors.logger import ConnectorLogger
from empd.connectors.protocol.cache import CacheConfig
from empd.connectors.service.simulation import SimulationConnector
from empd.mapping import Mapping
from empd.worker.course import RECORDS_PER_S, Course
from empd.worker.holds import Holds
from empd.worker.hosted import Hosted, Plan, plan_of
from empd.worker.log import Log
from empd.worker.port import Port


class Echo(Service):
    async def process(self, job: JobView, context: Context) -> Any:
        if job.attempt > 1:
            raise RateLimited("later")
        context.progress(0.5, "halfway")
        return 7


def hosted(connector: str, path: str = "", least: str = "info", **more: Any) -> Hosted:
    plan = Plan(connector, path, more.pop("api_config", {}), (), (), 1, **more)
    port = Port.__new__(Port)
    port.secrets = {}
    return Hosted("s", plan, Site(service="s"), port, Log(least))


def test_a_token_that_a_connector_has_fetched_is_hidden_in_all_that_its_worker_says() -> None:
    service = hosted("SimulationConnector")
    service.build()
    assert service.connector is not None
    service.connector.site.learn(["fetched-token"])
    assert service.redact("a fetched-token b") == "a *** b"


def test_a_service_that_wants_nothing_pays_nothing() -> None:
    plain = hosted("SimulationConnector")
    plain.build()
    assert plain.process.__func__ is SimulationConnector.process  # type: ignore[attr-defined]
    verbose = hosted("SimulationConnector", least="debug")
    verbose.build()
    assert isinstance(verbose.process, Course)


class Deaf:
    """A port behind which nobody is."""

    def progress(self, *_: Any) -> None:
        pass


def jobs(count: int, attempt: int = 1) -> list[JobView]:
    return [JobView(n, 1, attempt, JobDetails(service="s"), b"\xc0") for n in range(1, count + 1)]


def run(course: Course, views: list[JobView]) -> None:
    async def all_of_them() -> None:
        for view in views:
            context = Context(Deaf(), view, 0)  # type: ignore[arg-type]
            try:
                await course(view, context)
            except RateLimited:
                continue

    asyncio.run(all_of_them())


@pytest.mark.parametrize(("attempt", "event"), [(1, "job_completed"), (2, "job_failed")])
def test_records_are_bounded_and_say_what_was_left_out(attempt: int, event: str) -> None:
    records: list[dict[str, Any]] = []
    connector = Echo(Echo.Config(), Site(service="s", logger=ConnectorLogger.to(records.append)))
    course = Course(connector.process, connector.log, verbose=False)
    count = 5_000
    run(course, jobs(count, attempt))
    assert {record["event"] for record in records} == {event}
    # However slow the machine is: written and left out make all, and far from all are written.
    left_out = sum(record.get("left_out", 0) for record in records)
    assert RECORDS_PER_S <= len(records) < count / 2
    assert len(records) + left_out <= count


def test_at_debug_nothing_is_left_out() -> None:
    records: list[dict[str, Any]] = []
    connector = Echo(Echo.Config(), Site(service="s", logger=ConnectorLogger.to(records.append, "debug")))
    run(Course(connector.process, connector.log, verbose=True), jobs(100))
    events = [record["event"] for record in records]
    assert events == ["job_received", "job_started", "job_progress", "job_completed"] * 100
    assert {(record["progress"], record["message"]) for record in records if record["event"] == "job_progress"} == {
        (0.5, "halfway")
    }


class CachedConfig(ConnectorConfig):
    cache: CacheConfig | None = None


class Buys(Service):
    """Each run costs."""

    Config: ClassVar[type[ConnectorConfig]] = CachedConfig

    async def process(self, job: JobView, context: Context) -> Any:
        return Result({"bought": job.id}, usage={"coins": 1})


def test_whatever_the_protocol_a_result_that_is_held_costs_nothing() -> None:
    service = hosted("Buys", f"{__name__}:Buys", api_config={"cache": {"ttl_s": 600, "key": ["/p"]}})
    service.build()
    payloads = [msgspec.msgpack.encode(payload) for payload in ({"p": 1}, {"p": 1, "q": 2}, {"p": 2})]

    async def results() -> list[Any]:
        views = [JobView(n, 1, 1, JobDetails(service="s"), payload) for n, payload in enumerate(payloads)]
        return [await service.process(view, Context(Deaf(), view, 0)) for view in views]  # type: ignore[arg-type]

    found = asyncio.run(results())
    assert [(each.value["bought"], each.usage) for each in found] == [(0, {"coins": 1}), (0, None), (2, {"coins": 1})]


class Choosy(Buys):
    """Takes even numbers; says what is wrong with what is none."""

    async def can_process_job(self, job: JobView, context: Context) -> bool:
        if not isinstance(context.payload["p"], int):
            raise InvalidInput("p must be a number")
        return context.payload["p"] % 2 == 0


def test_a_job_that_a_connector_cannot_process_is_refused_before_anything_is_done_for_it() -> None:
    service = hosted("Choosy", f"{__name__}:Choosy", api_config={"cache": {"ttl_s": 600, "key": ["/p"]}})
    service.build()

    def of(number: int, payload: Any) -> Any:
        view = JobView(number, 1, 1, JobDetails(service="s"), msgspec.msgpack.encode(payload))
        return asyncio.run(service.process(view, Context(Deaf(), view, 0)))  # type: ignore[arg-type]

    assert of(1, {"p": 2}).value == {"bought": 1}
    with pytest.raises(InvalidInput, match="s does not take this job") as refusal:
        of(2, {"p": 3})
    assert not refusal.value.retry
    with pytest.raises(InvalidInput, match="p must be a number"):
        of(3, {"p": "four"})
    assert of(4, {"p": 2}).usage is None, "held"


def test_a_key_of_a_cache_that_is_no_pointer_is_said() -> None:
    service = hosted("Buys", f"{__name__}:Buys", api_config={"cache": {"ttl_s": 600, "key": ["p"]}})
    service.build()
    assert "api_config" in service.reason
    assert "not a JSON pointer" in service.reason


def test_services_of_every_protocol_may_have_a_cache() -> None:
    for name in ("RestSyncConnector", "KServeConnector", "AIServiceConnector", "CustomWebSocketConnector"):
        fields = {field.name: field.type for field in msgspec.structs.fields(registry.load_class(name).Config)}
        assert fields["cache"] == CacheConfig | None, name


def test_a_hold_ends_by_itself_or_when_it_is_let_go() -> None:
    async def run() -> list[str]:
        seen: list[str] = []
        holds = Holds(lambda: seen.append(holds.reason))
        holds("a", "circuit open", 3600)
        holds("b", "asked to wait", 0.01)
        holds("a")
        while holds.reason:
            await asyncio.sleep(0.005)
        holds("c", "never", 0)
        return seen

    assert asyncio.run(run()) == ["circuit open", "asked to wait", ""]


class Counted(Service):
    """Counts how often it is asked how it is."""

    health_interval_s: ClassVar[float] = 3600.0
    asked: ClassVar[int] = 0

    async def check_health(self) -> bool:
        Counted.asked += 1
        return Counted.asked > 2


def test_the_mapping_says_how_often_health_is_asked_for() -> None:
    mapping = Mapping.from_dict(
        {
            "workers": {"w": {"services": ["s"]}},
            "connectors": {"Counted": {"path": f"{__name__}:Counted"}},
            "services": {"s": {"connector": "Counted", "health_interval_s": "${INTERVAL_S:-0.01}"}},
        },
        {},
    )

    records: list[dict[str, Any]] = []

    async def asked_often() -> None:
        service = hosted("")
        service.plan = plan_of(mapping, "w", "s")
        service.site = Site(service="s", logger=ConnectorLogger.to(records.append, worker="w-0"))
        service.port.storage = Stores()
        service.build()
        await service.open(lambda: None)
        async with asyncio.timeout(30):
            while Counted.asked < 5:
                await asyncio.sleep(0.01)
        await service.close()

    asyncio.run(asked_often())
    # Every record of a service can be routed by its protocol; it is written when health becomes another.
    told = [(record["healthy"], record["protocol"]) for record in records if record["event"] == "health_check"]
    assert told == [(False, "local"), (True, "local")]


class Stores:
    """Nothing is saved here."""

    on_failure: Any = None

    async def problem(self) -> str:
        return ""

    async def close(self) -> None:
        pass
