"""A store with nothing in it, and the means to look into it without the code under test."""

from __future__ import annotations

import itertools
from pathlib import Path

from empd.asset import AssetConfig
from empd.assets.saver import Saver
from tests.azurite import Azurite

_containers = (f"container-{number}" for number in itertools.count())


class Place:
    """One store."""

    def __init__(self, provider: str, root: Path, azurite: Azurite) -> None:
        self.provider = provider
        self.root = root
        self.container = next(_containers)
        self._azurite = azurite

    def saver(self, **options: object) -> Saver:
        """A saver for this store."""
        entry = self._azurite.store(self.container) if self.provider == "azure" else {"provider": "local"}
        return Saver(AssetConfig(**{**entry, **options}), self.root, 0)

    def names(self) -> set[str]:
        """All that can be seen."""
        if self.provider == "azure":
            return set(self._azurite.blobs(self.container))
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)) for path in files if not path.name.endswith(".empd")}

    def plant(self, name: str, content: bytes) -> None:
        """Puts something there that empd did not."""
        if self.provider == "azure":
            self._azurite.store(self.container)
            with self._azurite.client() as client:
                client.get_blob_client(self.container, name).upload_blob(content)
        else:
            self.root.mkdir()
            (self.root / name).write_bytes(content)

    def read(self, name: str) -> bytes:
        """An asset's bytes."""
        if self.provider == "azure":
            return self._azurite.read(self.container, name)
        return (self.root / name).read_bytes()
