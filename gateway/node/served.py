"""A collection as this node serves it, whether it is hosted here or elsewhere."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.engine.types import Answer, Document, Done, Page, Span, Spec, Write
from gateway.errors import HotindexError
from gateway.node.exchange import Info
from gateway.node.forms import Form
from gateway.node.watches import Opened
from gateway.protocol import messages
from gateway.push.room import Room, Sink


class Served(Protocol):
    """Call on the event loop."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Spec: ...

    @property
    def epoch(self) -> str: ...

    @property
    def room(self) -> Room: ...

    async def info(self) -> Info: ...

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]:
        """Queue a write, and return the future of its outcome. While the queue is full it waits, or raises Overloaded. See
        `Committer.submit`.
        """
        ...

    async def get(self, document_id: str, *, include_vector: bool) -> tuple[Document, bytes | None] | None:
        """Return a document and, if asked for, its vector; None where there is none."""
        ...

    async def search(self, command: messages.Search) -> Answer:
        """Return the nearest documents. Raises what is wrong with the command."""
        ...

    async def learn(self, command: messages.Learn) -> Done:
        """Learn what a user did; return once it is on disk. Raises what is wrong with the command."""
        ...

    async def put_user(self, command: messages.PutUser) -> Done:
        """Replace the vector that stands for a user. Raises what is wrong with the command."""
        ...

    async def forget_user(self, user_id: str) -> Done:
        """Delete all that is known of a user."""
        ...

    async def user(self, user_id: str) -> messages.UserMessage:
        """Return what is known of a user. Raises NotFound."""
        ...

    async def watch(self, command: messages.Watch, watch_id: str, form: Form, sink: Sink) -> Opened:
        """Return a watch that is told of changes, in `form`, once its answer was written and `begin` called. Raises what is
        wrong with the command. Where this is cancelled, there is no watch.
        """
        ...

    def reaches(self, since: int, epoch: str | None) -> bool:
        """Tell whether the net change after `since` of `epoch` (None: this one) can be given in full."""
        ...

    async def read_changes(self, span: Span, limit: int, limit_bytes: int, with_vectors: bool) -> Page:
        """Return a page of the net change in `span`: at most `limit` documents, of about `limit_bytes`."""
        ...
