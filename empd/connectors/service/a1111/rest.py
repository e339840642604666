"""A WebUI wherever it is, with all operations of its API."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.service.a1111.connector import A1111Connector


class A1111RestConnector(A1111Connector):
    """`base_url`, with `auth` where the server has `--api-auth`. Payload: the fields of txt2img or img2img as the API
    names them, with `model`, `vae`, `loras`, `controlnet`; or another `operation`."""

    connector_id: ClassVar[str] = "a1111-rest"
