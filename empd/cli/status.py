"""`empd status`: what a job that is submitted now would meet."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from empd import __version__
from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.page import Page, address, directory
from empd.client import Client
from empd.errors import EmpdError
from empd.supervisor.verdict import describe_status

INSTANCES_TIMEOUT_S = 2.0


def picture(client: Client) -> dict[str, Any]:
    """The broker's status, with the page's address and, on the same host, what the supervisor says."""
    found = client.status()
    page = address(client.endpoint)
    supervisor = told_by_supervisor(client.endpoint)
    more = {"endpoint": client.endpoint, "page": f"http://{page}/" if page else None, "supervisor": supervisor}
    return {"client_version": __version__, **more, **found, "instances": instances(client.endpoint)}


def told_by_supervisor(endpoint: str) -> dict[str, Any] | None:
    """What the supervisor says of its children; None of a remote daemon, or of one that is just starting."""
    try:
        found: dict[str, Any] = json.loads((directory(endpoint) / "supervisor.json").read_text())
    except (OSError, ValueError):
        return None
    return found


def worker_children(supervisor: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The workers among them by name, those too that have crashed or only start, which the broker does not know."""
    children = (supervisor or {}).get("children", ())
    return {child["name"]: child for child in children if child["kind"] == "worker" and child["state"] != "down"}


def instances(endpoint: str) -> list[dict[str, Any]]:
    """What every worker says of each of its services; nothing where no web process answers."""
    try:
        connectors = Page(endpoint, INSTANCES_TIMEOUT_S).get("/v1/connectors")["connectors"]
    except (EmpdError, ValueError, KeyError):
        return []
    return [instance for connector in connectors for instance in connector["instances"]]


@click.command()
@options.endpoint
@options.as_json
def status(endpoint: str | None, json_output: bool) -> int:
    """Show services, workers and problems. Exit code 1 when a job submitted now would be refused or not run."""
    with options.connect(endpoint) as client:
        found = picture(client)
    if json_output:
        output.print_json(found)
    else:
        show(found)
    return ExitCode.FAILED if found["problems"] else ExitCode.OK


def show(found: dict[str, Any]) -> None:
    """The picture, for people."""
    for text in render(found):
        output.console().print(text)


def render(found: dict[str, Any]) -> list[Any]:
    """The picture as things that rich draws."""
    from rich.text import Text

    jobs, journal = found["jobs"], found["journal"]
    head = f"{jobs['unfinished']} unfinished, {jobs['held']} running, {jobs['dead']} dead-lettered"
    where = f"page {found['page'] or 'unknown'}, journal {output.size(journal['size_bytes'])}"
    lines: list[Any] = [Text(head, style="bold"), Text(where)]
    supervisor = found.get("supervisor") or {}
    virtual = sum(1 for device in supervisor.get("devices", ()) if device.get("virtual"))
    if virtual:
        lines.append(Text(f"{virtual} GPUs are virtual: stand-ins on a box without one", style="yellow"))
    if supervisor.get("without_gpu"):
        lines.append(Text(_without_gpu(supervisor), style="yellow"))
    lines += [_services(found), _workers(found)]
    servers = [child for child in supervisor.get("children", ()) if child["kind"] == "server"]
    if servers:
        lines.append(_servers(servers))
    lines += [Text(line, style="yellow") for line in _down(supervisor)]
    lines += [Text(line) for line in _reports(found["instances"])]
    lines += [Text(f"problem: {problem}", style="red") for problem in found["problems"]]
    return lines


def _servers(servers: list[dict[str, Any]]) -> Any:
    rows = [
        (
            server["name"],
            server["state"],
            output.duration(max(0.0, time.time() - server["since_unix_s"])),
            str(server["server_pid"] or ""),
            str(server["port"] or ""),
            str(server["restarts"]),
            f"{server['last_exit']}, {describe_status(server['last_status'])}" if server["last_exit"] else "",
        )
        for server in servers
    ]
    return output.table(("server", "state", ">for", ">pid", ">port", ">restarts", "last exit"), rows)


def _services(found: dict[str, Any]) -> Any:
    rows = [
        (
            name,
            str(service["waiting"]),
            output.duration(service["oldest_age_s"]) if service["waiting"] else "",
            str(service["workers"]),
            str(service["slots"]),
            "; ".join(service["reasons"]),
        )
        for name, service in found["services"].items()
    ]
    return output.table(("service", ">waiting", ">oldest", ">workers", ">slots", "why"), rows)


def _without_gpu(supervisor: dict[str, Any]) -> str:
    """Which worker types are not there because this box has no GPU."""
    names = ", ".join(supervisor["without_gpu"])
    why = f" ({supervisor['devices_reason']})" if supervisor.get("devices_reason") else ""
    return f"no GPU{why}, so no workers of {names}; `empd run --gpus virtual:1` stands in for one"


def _down(supervisor: dict[str, Any]) -> list[str]:
    """Processes of the daemon's own that are not ready; workers and servers have tables."""
    others = (child for child in supervisor.get("children", ()) if child["kind"] not in ("worker", "server"))
    down = (child for child in others if child["state"] not in ("ready", "down"))
    return [f"{child['name']} is not ready ({child['state']}) {_last_exit(child)}".rstrip() for child in down]


def _reports(instances: list[dict[str, Any]]) -> list[str]:
    """What connectors report of themselves: circuits, limits, missing variables, plugins that fail."""
    lines = []
    for instance in instances:
        facts = dict(instance.get("report") or {})
        if instance.get("missing_variables"):
            facts["missing variables"] = ", ".join(instance["missing_variables"])
        for plugin in instance.get("plugins") or ():
            if plugin.get("error"):
                facts[f"plugin {plugin.get('name')}"] = plugin["error"]
        where = f"{instance['service']} on {instance['worker']}"
        lines += [f"{where}: {key}: {_fact(value)}" for key, value in sorted(facts.items())]
    return lines


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _workers(found: dict[str, Any]) -> Any:
    children = worker_children(found.get("supervisor"))
    rows = {worker["name"]: _worker(found, worker, children.get(worker["name"])) for worker in found["workers"]}
    # Jobs wait for those that the broker does not know, too.
    rows |= {
        name: (name, child["state"], str(child["pid"] or ""), "", "", str(child["restarts"]), "", _last_exit(child))
        for name, child in children.items()
        if name not in rows
    }
    columns = ("worker", "state", ">pid", ">running", ">slots", ">restarts", "GPU", "why")
    return output.table(columns, [rows[name] for name in sorted(rows)])


def _worker(found: dict[str, Any], worker: dict[str, Any], child: dict[str, Any] | None) -> tuple[str, ...]:
    device = worker["device"] or {}
    state = "up" if worker["connected"] else "lost"
    if "*" in found["drained"] or worker["name"] in found["drained"]:
        state = "drained"
    return (
        worker["name"],
        state,
        str(worker["pid"]),
        str(worker["held"]),
        str(worker["slots"]),
        str(child["restarts"]) if child else "",
        f"{device['name']} {device['index']}" if device else "",
        worker["reason"] or (_last_exit(child) if child else ""),
    )


def _last_exit(child: dict[str, Any]) -> str:
    """How a child ended that was not meant to, and when it gets its next start."""
    said = []
    if child["last_exit"] not in (None, "clean", "drained"):
        said.append(f"last exit: {child['last_exit']}, {describe_status(child['last_status'])}")
    if child.get("next_start_unix_s"):
        said.append(f"starts again in {output.duration(child['next_start_unix_s'] - time.time())}")
    return "; ".join(said)
