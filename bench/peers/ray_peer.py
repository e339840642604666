"""Ray on one machine: two actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import ray

from peers import job, network
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer

BATCH = 100
STORE_BYTES = 512 << 20


class Echo:
    """The worker."""

    def many(self, payloads: list[bytes]) -> list[bytes]:
        """The jobs of one call."""
        return [job.run(payload) for payload in payloads]


class RayPeer(Peer):
    """See the module. Nothing of it is on a disk."""

    is_apart: ClassVar[bool] = False

    name = "Ray"
    package = "ray"
    settings = {"fast": f"actors that are restarted and their calls retried, {BATCH} jobs in a call"}

    def start(self) -> None:
        if not RayPeer.is_apart:
            network.leave()  # it listens on all addresses, for whoever comes
            RayPeer.is_apart = True
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _temp_dir=str(self.directory / "ray"),
            logging_level="error",
            log_to_driver=False,
        )
        kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Echo)
        self._actors = [kind.remote() for _ in range(WORKERS)]

    def put(self, payloads: Sequence[bytes]) -> Any:
        calls = range(0, len(payloads), BATCH)
        return [
            self._actors[index % WORKERS].many.remote(list(payloads[start : start + BATCH]))
            for index, start in enumerate(calls)
        ]

    def results(self, handles: Any) -> list[bytes]:
        return [payload for found in ray.get(handles, timeout=RESULT_TIMEOUT_S) for payload in found]

    def stop(self) -> None:
        ray.shutdown()
