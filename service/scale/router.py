"""To which replica a request goes."""

from __future__ import annotations

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class AnyReplica(FIFOMixin, RequestRouter):  # type: ignore[misc] # Ray's types are not read
    """Of two replicas drawn from all, the one with fewer requests in flight.

    Serve's own router also draws two, but from those of the proxy's own node as long as they have room for one more
    request by Serve's count. Our replicas always have, as they reject themselves: so the replicas of one node would
    reject while those of the others were idle.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Serve takes the less busy one of those in the inner list."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
