"""ComfyUI between jobs and elsewhere, with credentials, from templates, in batches."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from services_comfyui import Attempt, Port, against_the_double, failing, opened, picture, sleeping, until

from empd.connectors.failures import ConnectorError, InvalidInput
from empd.connectors.service.comfyui.connector import ComfyUIConnector
from tests.doubles.comfyui import ComfyUIDouble

# --- between jobs, elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "freed"),
    [
        ({}, []),
        ({"free_after_job": "memory"}, [{"unload_models": False, "free_memory": True}]),
        ({"free_after_job": "models"}, [{"unload_models": True, "free_memory": True}]),
        ({"vram_free_bytes_min": 20 << 30}, [{"unload_models": True, "free_memory": True}]),
        ({"vram_free_bytes_min": 10 << 30}, []),
    ],
)
def test_memory_is_let_go_between_jobs(config: dict[str, Any], freed: list[Any]) -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        await Attempt(connector, picture()).value()
        assert server.counts.freed == freed

    against_the_double(body, **config)


def test_models_queue_and_memory_are_told() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        assert "sdxl_base_1.0.safetensors" in await connector.models()
        info = await connector.service_info()
        assert info["vram_total_bytes"] - info["vram_free_bytes"] == connector.vram_used_bytes == 6 << 30

    against_the_double(body)


def test_credentials_go_with_every_call_and_the_socket() -> None:
    config = {"auth": {"type": "bearer", "token": "hunter2"}}

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.1))
        await job.value()
        assert server.counts.sockets_max == 1
        assert job.port.fractions

    against_the_double(body, "ComfyUIRemoteConnector", {"token": "Bearer hunter2"}, **config)


def test_wrong_credentials_close_the_service() -> None:
    async def run() -> None:
        from services_comfyui import connector_at

        async with ComfyUIDouble(token="Bearer right") as server:
            connector = connector_at(server.url, "ComfyUIRemoteConnector", auth={"type": "bearer", "token": "wrong"})
            assert not await connector.start()
            assert "credentials" in connector.reason
            assert "wrong" not in connector.reason
            await connector.stop()

    asyncio.run(run())


def test_tls_with_a_ca_of_ones_own(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=comfyui"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.1))
        assert (await job.value())["outputs"]
        assert job.port.fractions

    against_the_double(body, "ComfyUIRemoteConnector", {"tls": tls}, ca_file=str(cert))


# --- advanced and batch ----------------------------------------------------------------------------------------------


def template() -> Any:
    """Colour and prefix have names."""
    graph = picture()
    graph["1"]["inputs"]["color"] = "{{color}}"
    graph["3"]["inputs"]["filename_prefix"] = "set-{{name:default}}"
    return graph


def test_a_template_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "portrait.json").write_text(json.dumps(template()))

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        payload = {"template": "portrait", "parameters": {"color": 7, "1.width": 16}, "outputs": ["SaveImage"]}
        job = Attempt(connector, payload)
        (output,) = (await job.value())["outputs"]
        assert output["filename"].startswith("set-default_")
        with pytest.raises(InvalidInput, match=r"parameters\.color: missing"):
            await Attempt(connector, {"template": "portrait"}, job_id=8).value()
        with pytest.raises(InvalidInput, match="there are: portrait"):
            await Attempt(connector, {"template": "landscape"}, job_id=9).value()

    against_the_double(body, "ComfyUIAdvancedConnector", templates_dir=str(tmp_path))


def test_chance_seeds_are_the_same_in_every_attempt() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        payload = {"workflow": sleeping(0.01, seed=1), "seed": "random"}
        seeds = [
            (await Attempt(connector, payload, job_id=job_id, epoch=epoch, attempt=epoch).value())["seeds"]["9"]
            for job_id, epoch in ((1, 1), (1, 2), (2, 1))
        ]
        assert seeds[0] == seeds[1] != seeds[2]

    against_the_double(body, "ComfyUIAdvancedConnector")


def batch(*colors: Any, **more: Any) -> dict[str, Any]:
    """One item for each colour."""
    return {"workflow": template(), "items": [{"parameters": {"color": color}} for color in colors], **more}


def test_a_batch_has_a_result_and_progress_for_each_item() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, batch(1, 2, 3, shared={"parameters": {"name": "x"}}))
        value = await job.value()
        assert (value["completed"], value["failed"]) == (3, 0)
        assert [item["index"] for item in value["items"]] == [0, 1, 2]
        assert [output for output, _, _, _ in job.port.shelf.saved] == [0, 1000, 2000]
        assert len(set(job.files)) == 3
        assert job.port.fractions == sorted(job.port.fractions)
        assert {partial["index"] for partial in job.port.partials if partial["kind"] == "item"} == {0, 1, 2}
        assert any("item 2 of 3: " in message for message, _, _ in job.port.messages)

    against_the_double(body, "ComfyUIBatchConnector")


def test_an_item_that_fails_is_tried_again_and_the_others_go_on() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = failing("RuntimeError")
        graph["9"]["inputs"]["exception_type"] = "{{kind}}"
        graph["2"]["inputs"]["image"] = ["{{from}}", 0]
        items = [{"parameters": {"2.image": [node, 0], "kind": "RuntimeError"}} for node in ("1", "9", "1")]
        graph["2"]["inputs"]["image"] = ["1", 0]
        payload = {"workflow": graph, "items": items, "item_retries": 2}
        value = await Attempt(connector, payload).value()
        assert (value["completed"], value["failed"]) == (2, 1)
        assert value["items"][1]["error"]["failure"] == "internal"
        # Three times: the first, and two more.
        assert sum("-1-" in prompt_id for prompt_id in server.counts.submissions) == 3
        assert set(server.counts.submissions.values()) == {1}
        with pytest.raises(ConnectorError, match="boom"):
            await Attempt(connector, {**payload, "on_failure": "fail"}, job_id=8).value()
        with pytest.raises(ConnectorError, match="all 1 items failed"):
            await Attempt(connector, {**payload, "items": items[1:2]}, job_id=9).value()

    against_the_double(body, "ComfyUIBatchConnector")


def test_the_next_attempt_at_a_batch_goes_on_where_the_last_one_stood() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = sleeping(0.3)
        graph["9"]["inputs"]["seed"] = "{{seed}}"
        payload = {"workflow": graph, "items": [{"parameters": {"seed": seed}} for seed in range(4)]}
        job = Attempt(connector, payload)
        await until(lambda: server.counts.started.total() == 3, "the third item")
        await job.stop("drain")
        with pytest.raises(ConnectorError):
            await job.value()
        again = Attempt(connector, payload, epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
        value = await again.value()
        assert (value["completed"], len(value["items"])) == (4, 4)
        assert value["items"][2]["adopted"]
        assert server.counts.submissions.total() == 4

    against_the_double(body, "ComfyUIBatchConnector")


def test_a_batch_names_the_item_that_is_wrong() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        with pytest.raises(InvalidInput, match=r"items\[1\]: parameters\.colour"):
            payload = batch(1, 2)
            payload["items"][1]["parameters"]["colour"] = 3
            await Attempt(connector, payload).value()
        assert server.counts.submissions.total() == 0

    against_the_double(body, "ComfyUIBatchConnector")


def test_the_log_has_what_the_schema_says() -> None:
    async def run() -> None:
        from empd.connectors.logger import ConnectorLogger

        records: list[dict[str, Any]] = []
        async with ComfyUIDouble() as server, opened(server.url) as connector:
            connector.log = ConnectorLogger.to(lambda record: records.append(dict(record)))
            await connector.service_info()
            graph = sleeping(0.1)
            graph["8"] = {
                "class_type": "CheckpointLoaderSimple",
                "inputs": {"ckpt_name": "sdxl_base_1.0.safetensors"},
            }
            job = Attempt(connector, graph)
            value = await job.value()
        (ended,) = [record for record in records if record["event"] == "service_prompt_ended"]
        assert ended["schema"] == "comfyui"
        assert ended["prompt_id"] == ended["client_id"] == value["prompt_id"]
        assert ended["websocket_message_type"] in ("executing", "execution_success", "progress_state", "executed")
        assert ended["node_id"] == "3"
        assert ended["model_name"] == "sdxl_base_1.0.safetensors"
        assert ended["vram_usage"] == 6 << 30
        assert len(ended["workflow_hash"]) == 16
        assert Port().instance in ended["prompt_id"]

    asyncio.run(run())
