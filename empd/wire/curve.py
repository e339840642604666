"""CURVE keys: who may speak over tcp, and with whom. Files in the certificate format of `zmq.auth`.

    the daemon's curve_dir               a client's curve_dir
      server.key_secret, server.key        server.key
      clients/NAME.key   one per client    client.key_secret, client.key

The daemon admits the keys in `clients/` and its own, with which its web process and a local command line come. Keys
are read again when the directory changes: a client whose file is removed is refused at its next connection.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq import auth
from zmq.utils import z85

from empd.errors import ConfigError

SERVER, CLIENT, CLIENTS = "server", "client", "clients"
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_PARTS = 7
_DOMAIN = b"empd"

Socket = zmq.Socket[bytes]


class KeyPair(NamedTuple):
    """A public key and its secret, in Z85 text."""

    public: bytes
    secret: bytes


def make_server_keys(directory: Path) -> None:
    """Makes the daemon's keys, and the directory for those of its clients. Raises FileExistsError: it has some."""
    (directory / CLIENTS).mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / f"{SERVER}.key_secret").exists():
        raise FileExistsError(f"{directory} has a server's keys already; clients know the daemon by them")
    _make(directory, SERVER)


def make_client_keys(directory: Path, name: str, bundle: Path) -> None:
    """Makes a client's keys: admits `name` in the daemon's `directory`, and fills `bundle` with what that client
    needs as its curve_dir. Raises ConfigError without a server's keys, FileExistsError for a name that is taken."""
    if not name or "/" in name or name.startswith("."):
        raise ConfigError([f"{name!r} is no name for a client's key; accepted: a file's name"])
    admitted = directory / CLIENTS / f"{name}.key"
    if admitted.exists():
        raise FileExistsError(f"{admitted} exists; remove it first to replace that client's keys")
    _load(directory / f"{SERVER}.key")
    bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make(bundle, CLIENT)
    shutil.copyfile(directory / f"{SERVER}.key", bundle / f"{SERVER}.key")
    shutil.copyfile(bundle / f"{CLIENT}.key", admitted)


def _make(directory: Path, name: str) -> None:
    _, secret = auth.create_certificates(directory, name)
    os.chmod(secret, 0o600)


def _load(path: Path) -> tuple[bytes, bytes]:
    try:
        public, secret = auth.load_certificate(path)
    except (OSError, ValueError):
        what = "not a key file, or not readable" if path.exists() else "no such file"
        raise ConfigError(
            [f"curve_dir: {path}: {what}; accepted: a key in the certificate format of zmq.auth"]
        ) from None
    return public, secret or b""


def _pair(path: Path) -> KeyPair:
    public, secret = _load(path)
    if not secret:
        raise ConfigError([f"curve_dir: {path}: holds no secret key; accepted: what was made together with its .key"])
    return KeyPair(public, secret)


def secure_client(socket: Socket, directory: Path) -> None:
    """Makes a socket speak as the client whose keys lie in `directory` (or as the daemon itself, where it is the
    daemon's). To be called before connect. Raises ConfigError."""
    own, daemons = directory / f"{CLIENT}.key_secret", directory / f"{SERVER}.key_secret"
    pair = _pair(daemons if daemons.exists() and not own.exists() else own)
    socket.curve_publickey, socket.curve_secretkey = pair
    socket.curve_serverkey = _load(directory / f"{SERVER}.key")[0]


class Doorkeeper:
    """Admits or refuses the clients of a CURVE server, as libzmq asks about each new connection (ZAP, RFC 27).

    `socket` is to be polled; when it is readable, `answer`. Raises ConfigError when the keys cannot be used.
    """

    def __init__(self, context: zmq.Context[Socket], directory: Path) -> None:
        self._clients = directory / CLIENTS
        self._pair = _pair(directory / f"{SERVER}.key_secret")
        self._admitted: frozenset[bytes] = frozenset()
        self._read_at_ns = -1
        self.refused = 0
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP_ENDPOINT)

    def secure(self, socket: Socket) -> None:
        """Makes a socket of the same context a CURVE server behind this door. To be called before bind."""
        socket.curve_server = True
        socket.curve_secretkey = self._pair.secret
        socket.zap_domain = _DOMAIN

    def answer(self) -> None:
        """Answers all that was asked, without waiting."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            well_formed = len(parts) == _ZAP_PARTS and parts[5] == b"CURVE"
            admitted = well_formed and parts[6] in self._keys()
            self.refused += not admitted
            status = (b"200", b"OK") if admitted else (b"400", b"this key is not in clients/")
            asked = parts[1] if len(parts) > 1 else b""
            self.socket.send_multipart((b"1.0", asked, *status, b"", b""))

    def _keys(self) -> frozenset[bytes]:
        """The admitted public keys, as they travel. A file that is no key admits nobody."""
        try:
            changed_ns = self._clients.stat().st_mtime_ns
        except OSError:
            return frozenset({z85.decode(self._pair.public)})
        if changed_ns != self._read_at_ns:
            found = {self._pair.public}
            for path in sorted(self._clients.glob("*.key")):
                try:
                    found.add(_load(path)[0])
                except ConfigError:
                    continue
            self._admitted = frozenset(map(z85.decode, found))
            self._read_at_ns = changed_ns
        return self._admitted

    def close(self) -> None:
        """Nobody is admitted any more."""
        self.socket.close(linger=0)
