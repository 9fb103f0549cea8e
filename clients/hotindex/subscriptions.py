"""The subscriptions of a client, one of each collection at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from hotindex import wire
from hotindex.connection import Connection
from hotindex.errors import HotindexError, ServerError
from hotindex.subscription import Subscription


class Subscriptions:
    """What subscriptions ask of their client (`subscription.Link`), and what the connection tells of them."""

    kinds = frozenset({"index_update", "reset", "caught_up", "unsubscribed"})

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rooms: set[str] = set()
        self._subscriptions: dict[str, Subscription] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._renewals: dict[Subscription, asyncio.Task[None]] = {}
        """At most one for each subscription, so that it begins again once, and not after it has ended."""

    async def enter(self, subscription: Subscription) -> None:
        if leaving := self._leaving.get(subscription.collection):
            # It must not come after the new subscription's command, and end that.
            await asyncio.wait([leaving])
        if subscription.collection in self._rooms:
            raise HotindexError(
                "already_subscribed",
                f"this client has a subscription to {subscription.collection!r}; use another client for a second",
                retryable=False,
            )
        self._rooms.add(subscription.collection)

        def began(reply: dict[str, Any]) -> None:
            # From here on it is the reader's to renew; before, a lost connection is made good by asking again.
            self._subscriptions[subscription.collection] = subscription
            subscription.began(reply)

        try:
            await self._connection.request(subscription.command(), again=True, at_once=began)
        except BaseException as error:
            self._forget(subscription)
            if not isinstance(error, ServerError):
                # The gateway may have begun, and its answer came too late.
                self._leave_soon(subscription)
            raise

    async def leave(self, subscription: Subscription) -> None:
        if self._forget(subscription) and self._connection.is_open:
            await self._connection.tell(_unsubscribe(subscription))

    def give_up(self, subscription: Subscription) -> None:
        if self._forget(subscription):
            self._leave_soon(subscription)

    def _leave_soon(self, subscription: Subscription) -> None:
        leaving = self._connection.spawn(self._connection.tell(_unsubscribe(subscription)))
        self._leaving[subscription.collection] = leaving
        leaving.add_done_callback(lambda _: self._leaving.pop(subscription.collection, None))

    def _forget(self, subscription: Subscription) -> bool:
        """Let another subscription to the collection begin; tell whether this was the one."""
        if renewal := self._renewals.pop(subscription, None):
            renewal.cancel()
        known = self._subscriptions.get(subscription.collection)
        if known is not None and known is not subscription:
            return False
        self._subscriptions.pop(subscription.collection, None)
        self._rooms.discard(subscription.collection)
        return known is not None

    def subscribe_again(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.collection) is not subscription:
            return
        if renewal := self._renewals.pop(subscription, None):
            renewal.cancel()

        def refused(error: HotindexError) -> None:
            self._forget(subscription)
            subscription.fail(error)

        self._renewals[subscription] = self._connection.spawn(
            self._connection.renew(subscription.command, subscription.began, refused)
        )

    def unsubscribe(self, subscription: Subscription) -> None:
        self._connection.spawn(self._connection.tell(_unsubscribe(subscription)))

    def take(self, message: dict[str, Any]) -> None:
        subscription = self._subscriptions.get(message["collection"])
        if subscription is None:
            return
        if message["type"] == "unsubscribed":
            subscription.ended_by_gateway()
            return
        for update in wire.pushes(message):
            subscription.push(update)

    def connected(self) -> None:
        for subscription in self._subscriptions.values():
            if not subscription.full:
                self.subscribe_again(subscription)

    def interrupted(self) -> None:
        for subscription in self._subscriptions.values():
            subscription.interrupted()

    def fail(self, error: HotindexError) -> None:
        for subscription in self._subscriptions.values():
            subscription.fail(error)


def _unsubscribe(subscription: Subscription) -> dict[str, Any]:
    return {"action": "unsubscribe", "collection": subscription.collection}
