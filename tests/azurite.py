"""Azurite, Microsoft's own stand-in for Azure Blob Storage, as a process of the tests on a free port."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from azure.storage.blob import BlobServiceClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.box import WAIT_S, wait_until

HOME = Path(sys.prefix, "servers", "azurite")
MAIN = HOME / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and key are the same everywhere, and no secret."""

_PORT = re.compile(r"successfully listens? on https?://127\.0\.0\.1:(\d+)")


class Azurite:
    """A running blob service; `in_memory` ones hold little, others lie in a temporary folder. With `oauth` it speaks
    TLS, by a certificate of its own (`ca_file`), and takes tokens: it looks at their lifetime, issuer and audience."""

    def __init__(self, *, in_memory: bool = True, oauth: bool = False) -> None:
        assert MAIN.exists(), f"{MAIN} is missing: `make test` installs it"
        self.folder = Path(tempfile.mkdtemp(prefix="empd-azurite-", dir="/tmp"))
        self.ca_file = self.folder / "certificate.pem"
        self._scheme = "https" if oauth else "http"
        self._log = self.folder / "log"
        options = [
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            "0",
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        options += ["--inMemoryPersistence"] if in_memory else ["--location", str(self.folder)]
        if oauth:
            key_file = self.folder / "key.pem"
            make_certificate(self.ca_file, key_file)
            options += ["--oauth", "basic", "--cert", str(self.ca_file), "--key", str(key_file)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(HOME / "node"), str(MAIN), *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        try:
            self.port = int(wait_until(self._port, "Azurite to listen")[1])
        except BaseException:
            self.close()
            raise

    def _port(self) -> re.Match[str] | None:
        text = self._log.read_text(errors="replace")
        assert self._process.poll() is None, f"Azurite ended:\n{text}"
        return _PORT.search(text)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def url(self) -> str:
        """The account's blob endpoint."""
        return f"{self._scheme}://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """What a client of Azure takes."""
        return (
            f"DefaultEndpointsProtocol={self._scheme};AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.url};"
        )

    def store(self, container: str, **more: Any) -> dict[str, Any]:
        """An entry of the mapping's `assets`; the container is made where it is missing."""
        with contextlib.suppress(Exception), self.client() as client:  # it is there already
            client.create_container(container)
        return {"provider": "azure", "container": container, "connection_string": self.connection_string, **more}

    @contextlib.contextmanager
    def client(self) -> Iterator[BlobServiceClient]:
        """Microsoft's own client."""
        verify = str(self.ca_file) if self._scheme == "https" else True
        with BlobServiceClient.from_connection_string(self.connection_string, connection_verify=verify) as client:
            yield client

    def blobs(self, container: str) -> dict[str, dict[str, str]]:
        """The names of all blobs with their metadata."""
        with self.client() as client:
            found = client.get_container_client(container).list_blobs(include=["metadata"])
            return {blob.name: dict(blob.metadata or {}) for blob in found}

    def read(self, container: str, name: str) -> bytes:
        """A blob's bytes."""
        with self.client() as client:
            return bytes(client.get_blob_client(container, name).download_blob().readall())

    def close(self) -> None:
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def make_certificate(certificate_file: Path, key_file: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
