"""Real Redis for the tests: servers, clusters and sentinels as processes on free ports of 127.0.0.1, their data in
temporary directories. See `tests/proxy.py` for what can happen on the way to them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from tests.ports import HOST, free_port
from tests.proxy import Proxy, ThreadedProxy

__all__ = [
    "Certificates",
    "Proxy",
    "RedisCluster",
    "RedisSentinel",
    "RedisServer",
    "ThreadedProxy",
    "eventually",
]

START_S = 20.0
Fsync: TypeAlias = Literal["everysec", "always"]


def eventually(condition: Callable[[], bool], what: str, within_s: float = START_S) -> None:
    """Wait for what other processes do, which tell nobody when they have."""
    due = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < due, f"{what} within {within_s} s"
        time.sleep(0.02)


class Certificates:
    """An authority, and a certificate of its for 127.0.0.1, for servers and clients alike. All files are PEM."""

    def __init__(self, directory: Path) -> None:
        self.ca = directory / "ca.crt"
        self.certificate = directory / "server.crt"
        self.key = directory / "server.key"
        ca_key, request, names = directory / "ca.key", directory / "server.csr", directory / "names"
        names.write_text(f"subjectAltName=IP:{HOST},DNS:localhost\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=Tests", "-keyout", ca_key, "-out", self.ca)
        self._openssl("req", "-new", *key, "-subj", f"/CN={HOST}", "-keyout", self.key, "-out", request)
        authority: list[str | Path] = ["-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial"]
        self._openssl(
            "x509", "-req", "-in", request, *authority, "-days", "2", "-extfile", names, "-out", self.certificate
        )

    def _openssl(self, *args: str | Path) -> None:
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


class _Process:
    """A redis-server with a configuration file, in a directory of its own."""

    def __init__(self, port: int | None, config: Mapping[str, str], *flags: str) -> None:
        self.port = port or free_port()
        self._config = dict(config)
        self._flags = flags
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self.directory = Path(self._directory.name)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._directory.cleanup()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start on the port and the data it has; return when it answers."""
        assert not self.alive
        path = self.directory / "redis.conf"
        if not path.exists():
            # Sentinels and clusters write to theirs.
            path.write_text("".join(f"{name} {value}\n" for name, value in self._config.items()))
        with (self.directory / "log").open("ab") as log:
            command = ["redis-server", str(path), *self._flags]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
        eventually(self._answers, f"redis-server answers on port {self.port}")

    def kill(self) -> None:
        """SIGKILL: what wasn't on disk is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start again on the same port and data, after SIGKILL if it still runs."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and nothing comes."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def cli(self, *args: str | int) -> str:
        """Run redis-cli. Raises CalledProcessError where Redis answers with an error."""
        command = ["redis-cli", "-e", "-h", HOST, "-p", str(self.port), *self._cli_flags(), *map(str, args)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_S, env=self._cli_env())
        return run.stdout.rstrip("\n")

    def _cli_flags(self) -> list[str]:
        return []

    def _cli_env(self) -> dict[str, str]:
        return dict(os.environ)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _answers(self) -> bool:
        assert self.alive, f"redis-server ended: {(self.directory / 'log').read_text()}"
        try:
            with self._connected() as connection:
                connection.sendall(b"PING\r\n")
                # LOADING is an answer, but not yet the one.
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.create_connection((HOST, self.port), timeout=1) as connection:
            yield connection


class RedisServer(_Process):
    """One server. It keeps nothing on disk unless `appendfsync` is given; `config` adds lines to its configuration."""

    def __init__(
        self,
        port: int | None = None,
        *,
        appendfsync: Fsync | None = None,
        password: str | None = None,
        tls: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> None:
        port = port or free_port()
        super().__init__(
            port,
            {
                "bind": HOST,
                "save": '""',
                "appendonly": "no" if appendfsync is None else "yes",
                "repl-diskless-sync-delay": "0",
                **({} if appendfsync is None else {"appendfsync": appendfsync}),
                **({} if password is None else {"requirepass": password, "masterauth": password}),
                **({"port": "0", "tls-port": str(port)} if tls else {"port": str(port)}),
                **(config or {}),
            },
        )
        self.password = password
        self.certificates = Certificates(self.directory) if tls else None
        if self.certificates is not None:
            self._config |= {
                "tls-cert-file": str(self.certificates.certificate),
                "tls-key-file": str(self.certificates.key),
                "tls-ca-cert-file": str(self.certificates.ca),
                "tls-auth-clients": "optional",
            }

    @property
    def url(self) -> str:
        login = "" if self.password is None else f":{self.password}@"
        if self.certificates is None:
            return f"redis://{login}{HOST}:{self.port}"
        return f"rediss://{login}{HOST}:{self.port}?ssl_ca_certs={self.certificates.ca}"

    def flushall(self) -> None:
        self.cli("FLUSHALL")

    def client_kill_pubsub(self) -> int:
        """Cut the connections of all subscribers; return how many these were."""
        return int(self.cli("CLIENT", "KILL", "TYPE", "PUBSUB"))

    def _cli_flags(self) -> list[str]:
        return [] if self.certificates is None else ["--tls", "--cacert", str(self.certificates.ca)]

    def _cli_env(self) -> dict[str, str]:
        return {**os.environ, **({} if self.password is None else {"REDISCLI_AUTH": self.password})}

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with super()._connected() as connection:
            if self.certificates is None:
                yield connection
                return
            context = ssl.create_default_context(cafile=str(self.certificates.ca))
            with context.wrap_socket(connection, server_hostname=HOST) as secured:
                yield secured


class RedisCluster:
    """Three masters with a replica each, which take over about two seconds after their master's end."""

    def __init__(self, config: Mapping[str, str] | None = None) -> None:
        self.servers = [RedisServer(config=self._config() | dict(config or {})) for _ in range(6)]
        self._stack = contextlib.ExitStack()

    @staticmethod
    def _config() -> dict[str, str]:
        return {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-node-timeout": "1000",
            "cluster-replica-validity-factor": "0",
            "cluster-allow-replica-migration": "no",
        }

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            nodes = [f"{HOST}:{server.port}" for server in self.servers]
            flags = ["--cluster-replicas", "1", "--cluster-yes"]
            subprocess.run(
                ["redis-cli", "--cluster", "create", *nodes, *flags], check=True, capture_output=True, timeout=60
            )
            eventually(self.settled, "the cluster is complete")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """All servers are named, so that it holds whichever are alive."""
        return f"redis+cluster://{','.join(f'{HOST}:{server.port}' for server in self.servers)}"

    @property
    def alive(self) -> list[RedisServer]:
        return [server for server in self.servers if server.alive]

    def settled(self) -> bool:
        """Whether all servers that are alive agree that every slot is served, and all replicas follow their masters."""
        return (
            all("cluster_state:ok" in server.cli("CLUSTER", "INFO") and self._follows(server) for server in self.alive)
            and len({self._masters(server) for server in self.alive}) == 1
        )

    def _follows(self, server: RedisServer) -> bool:
        replication = server.cli("INFO", "replication")
        return "role:master" in replication or "master_link_status:up" in replication

    def _masters(self, server: RedisServer) -> frozenset[tuple[str, ...]]:
        lines = [line.split() for line in server.cli("CLUSTER", "NODES").splitlines()]
        return frozenset((line[0], *line[8:]) for line in lines if "master" in line[2] and "fail" not in line[2])

    def owner(self, key: str) -> RedisServer:
        """Return the master of a key or a channel."""
        asked = self.alive[0]
        slot = int(asked.cli("CLUSTER", "KEYSLOT", key))
        for line in (line.split() for line in asked.cli("CLUSTER", "NODES").splitlines()):
            ranges = [part.partition("-") for part in line[8:] if "[" not in part]
            if any(int(first) <= slot <= int(last or first) for first, _, last in ranges):
                return self._server(line[1])
        raise AssertionError(f"slot {slot} has an owner")

    def replica(self, key: str) -> RedisServer:
        """Return the server that follows the owner of a key."""
        owner = self.owner(key)
        replicas = owner.cli("CLUSTER", "REPLICAS", owner.cli("CLUSTER", "MYID"))
        return self._server(replicas.split()[1])

    def _server(self, address: str) -> RedisServer:
        port = int(address.partition("@")[0].rpartition(":")[2])
        return next(server for server in self.servers if server.port == port)

    def kill_owner(self, key: str) -> RedisServer:
        """Kill the master of a key; return it, for `restart`."""
        owner = self.owner(key)
        owner.kill()
        return owner

    def switch_over(self, key: str) -> None:
        """Let the replica take over from the owner of a key, which stays alive; return when all know."""
        replica = self.replica(key)
        replica.cli("CLUSTER", "FAILOVER")
        eventually(lambda: self.owner(key) is replica and self.settled(), "the replica is master")


class _SentinelProcess(_Process):
    def __init__(self, service: str, master: RedisServer) -> None:
        port = free_port()
        super().__init__(
            port,
            {
                "bind": HOST,
                "port": str(port),
                "sentinel": f"monitor {service} {HOST} {master.port} 2\n"
                f"sentinel down-after-milliseconds {service} 1000\n"
                f"sentinel failover-timeout {service} 4000",
            },
            "--sentinel",
        )


class RedisSentinel:
    """A master, a replica and three sentinels, two of which have to agree on a failover. It takes about three seconds."""

    service = "hotindex"

    def __init__(self) -> None:
        first = RedisServer()
        self.servers = [first, RedisServer(config={"replicaof": f"{HOST} {first.port}"})]
        self.sentinels = [_SentinelProcess(self.service, first) for _ in range(3)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            eventually(self._replicates, "the replica follows the master")
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            eventually(self._complete, "the sentinels know each other")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}"

    @property
    def master(self) -> RedisServer:
        """The master as the first sentinel sees it."""
        port = int(self.sentinels[0].cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service).split()[1])
        return next(server for server in self.servers if server.port == port)

    def kill_master(self) -> RedisServer:
        """Kill the master; return it, for `restart`."""
        master = self.master
        master.kill()
        return master

    def _replicates(self) -> bool:
        return "master_link_status:up" in self.servers[1].cli("INFO", "replication")

    def _complete(self) -> bool:
        for sentinel in self.sentinels:
            words = sentinel.cli("SENTINEL", "MASTER", self.service).split()
            facts = dict(zip(words[::2], words[1::2], strict=False))
            if facts["num-other-sentinels"] != "2" or facts["num-slaves"] != "1":
                return False
        return True
