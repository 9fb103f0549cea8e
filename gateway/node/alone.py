"""What a node asks of the cluster it is part of, and the cluster of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol

from gateway.bus.agreement import State
from gateway.bus.bus import Bus, Listener
from gateway.bus.local import LocalBus
from gateway.engine.collection import Collection, new_epoch
from gateway.engine.replay import Copy
from gateway.engine.types import Spec
from gateway.node.registry import Holding, Life, NodeState
from gateway.node.remote import Calls


class Local(Protocol):
    """What the cluster asks of the node it is for."""

    def holdings(self) -> dict[str, Holding]:
        """Return what the node hosts."""
        ...

    async def join(self, life: Life, state: State, copies: AsyncIterator[Copy] | None) -> None:
        """Begin to host a collection, with what is copied from another node."""
        ...

    async def replace(self, name: str, state: State, agreed: int, copies: AsyncIterator[Copy] | None) -> None:
        """Copy a collection anew, and submit once more what this node alone has of it, after `agreed`."""
        ...

    async def leave(self, name: str) -> None:
        """Remove a collection that was dropped elsewhere."""
        ...

    def followed(self) -> dict[str, str]:
        """Return the collections that other nodes host and clients ask for here, with their epochs."""
        ...

    def unfollow(self, name: str, epoch: str) -> None:
        """Tell all who subscribe and watch that a collection that others host was dropped."""
        ...


class Cluster(Protocol):
    """Where collections come from, and how their commits are ordered. Called on the event loop."""

    async def start(self, local: Local, ws: str, http: str) -> None:
        """Begin to take part, once the node serves at these addresses. Raises StartupError."""
        ...

    async def leave(self) -> None:
        """Take no more part, save for the commits under way."""
        ...

    async def close(self) -> None: ...

    def make_bus(
        self, collection: Collection, listener: Listener, executor: Executor, room: Callable[[], Awaitable[None]]
    ) -> Bus: ...

    async def register(self, spec: Spec, owner: Life | None = None) -> Life:
        """Return the life of a collection to make: a new one, or that which another node has made meanwhile.

        Raises NotFound where it belongs to an `owner` that was dropped.
        """
        ...

    async def drop(self, name: str, epoch: str) -> None:
        """Have all nodes drop a collection. Raises StorageUnavailable."""
        ...

    async def nodes(self) -> list[NodeState]: ...

    def names(self) -> list[str]:
        """Return the collections there are, as far as is known here."""
        ...

    def exists(self, name: str) -> bool:
        """Tell whether there is a collection that isn't hosted here. Raises StorageUnavailable while that isn't known."""
        ...

    def hosts(self, name: str) -> bool:
        """Tell whether this node is to host a collection."""
        ...

    def calls(self, name: str) -> Calls | None:
        """Return what asks other nodes for a collection; None where none is known that could be asked."""
        ...

    @property
    def fault(self) -> str | None: ...


class SingleNode:
    """A cluster of one."""

    fault: str | None = None

    async def start(self, local: Local, ws: str, http: str) -> None:
        pass

    async def leave(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def make_bus(
        self, collection: Collection, listener: Listener, executor: Executor, room: Callable[[], Awaitable[None]]
    ) -> Bus:
        return LocalBus(collection, listener, executor, room)

    async def register(self, spec: Spec, owner: Life | None = None) -> Life:  # noqa: ARG002 - it is there
        return Life(new_epoch(), spec)

    async def drop(self, name: str, epoch: str) -> None:
        pass

    async def nodes(self) -> list[NodeState]:
        return []

    def names(self) -> list[str]:
        return []

    def exists(self, name: str) -> bool:  # noqa: ARG002 - it has all
        return False

    def hosts(self, name: str) -> bool:  # noqa: ARG002 - it has all
        return True

    def calls(self, name: str) -> Calls | None:  # noqa: ARG002 - there is nobody else
        return None
