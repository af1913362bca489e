"""What a deployment on Ray Serve is asked for, and what follows from it for Serve's own settings. Needs no Ray."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from service.settings import Settings

if TYPE_CHECKING:
    from service.lifecycle import LoadDetectors

_SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}

# Requests that Serve lets into a replica beyond those that have a place in it: rejections leave within milliseconds,
# and pages, probes and metrics need no place. While there is room for them, it is the replica that says no, not Serve.
_ROOM_FOR_REJECTIONS = 256
# In one proxy, while every replica is full even of rejections, or none is up yet. Each request is among them for the
# milliseconds until a replica is chosen, so that a small bound would reject what comes all at once.
_WAITING_FOR_A_REPLICA = 1000
# Serve looks at a draining replica again after this; its own default of 2 s would add to every end.
_DRAIN_LOOK_S = 0.5
_STARTS = 3  # weights that cannot be loaded seldom can the next time; Serve's own default is 20
_END_S = 5  # between the last answer and the replica's own end
# Serve's to decide or to know, or of no meaning in a process that does not listen.
_NOT_HERE = {
    "host": "Serve's proxies listen; set http_options",
    "port": "Serve's proxies listen; set http_options",
    "request_timeout_ms": "request_timeout_s in http_options bounds it too; set FRCNN_REQUEST_TIMEOUT_MS on every node",
    "enable_reload": "a request reaches one replica alone; deploy again, and Serve replaces them all",
    "drain_delay_s": "Serve stops sending requests to a replica before it ends it",
}


class ScaleArguments(BaseModel):
    """How many replicas, of what size; and settings of the service by their own names, such as `weights`.

    A setting that is not given is read from the environment of each replica. Not so `device`, `queue_capacity` and
    `shutdown_timeout_s`, from which Serve's options follow: the builder reads them and passes them to each replica.
    """

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    min_replicas: int = Field(1, ge=0, description="Fewest replicas; 0: the first request waits, within its deadline.")
    max_replicas: int = Field(4, ge=1, description="Most replicas.")
    target_ongoing_requests: float = Field(
        8, gt=0, description="Requests in flight in a replica, on average, from which on there should be more replicas."
    )
    upscale_delay_s: float = Field(
        10, ge=0, description="How long there must be too much work before replicas are added."
    )
    downscale_delay_s: float = Field(300, ge=0, description="How long there must be too little before some are ended.")
    look_back_s: float = Field(
        15, gt=10, description="Requests in flight are averaged over so long; Serve counts them every 10 s."
    )
    num_cpus: float = Field(1, gt=0, description="Cores of a replica: for decoding, and on a CPU for the detector.")
    health_check_period_s: float = Field(2, gt=0, description="A replica that fails three checks in a row is replaced.")
    detectors: str = Field(
        "service.devices.loading:load_detectors", description="Function that makes the detectors: `module:name`."
    )

    @model_validator(mode="after")
    def _agree(self) -> ScaleArguments:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}")
        for name in self.given:
            if name in _SECRETS:
                raise ValueError(f"{name} would be stored, and shown, with the deployment: set it in the environment")
            if name in _NOT_HERE:
                raise ValueError(f"{name} cannot be set: {_NOT_HERE[name]}")
        try:
            capacity = self.settings.queue_capacity
        except ValidationError as error:
            raise ValueError(_in_words(error)) from None
        if self.target_ongoing_requests >= capacity:
            raise ValueError(
                f"target_ongoing_requests is {self.target_ongoing_requests:g}, but a replica rejects what is more than "
                f"queue_capacity, {capacity}: no replica would ever be added"
            )
        self.loader()
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The service's settings that are set here."""
        return dict(self.model_extra or {})

    @property
    def settings(self) -> Settings:
        """All of the service's settings, the others by the environment of this process, the builder."""
        return Settings(**self.given)

    def loader(self) -> LoadDetectors:
        """The function that makes the detectors.

        Raises:
            ValueError: there is none of that name.
        """
        module, _, name = self.detectors.partition(":")
        try:
            load = getattr(import_module(module), name)
        except (ImportError, ValueError, AttributeError) as error:
            raise ValueError(f"detectors: {self.detectors!r} is no function as module:name: {error}") from None
        if not callable(load):
            raise ValueError(f"detectors: {self.detectors!r} cannot be called")  # noqa: TRY004 - for pydantic
        return load  # type: ignore[no-any-return]

    def gpus(self, *, in_cluster: float) -> int:
        """GPUs of a replica: as many as its `device` names; for `auto`, one where the cluster has any."""
        device = self.settings.device
        if device == "auto":
            return 1 if in_cluster > 0 else 0
        return sum(part.strip().startswith("cuda") for part in device.split(","))

    def replica_settings(self, *, gpus: int) -> dict[str, Any]:
        """What each replica receives: what is given, and what `deployment_options` depends on.

        Ray numbers the GPUs that a replica sees from 0, whichever they are.
        """
        settings = self.settings
        return self.given | {
            "device": ",".join(f"cuda:{number}" for number in range(gpus)) or "cpu",
            "queue_capacity": settings.queue_capacity,
            "shutdown_timeout_s": settings.shutdown_timeout_s,
        }

    @property
    def decode_threads(self) -> int:
        """Decoding threads of a replica where nothing else is set: one for each of its cores."""
        return max(1, math.floor(self.num_cpus))

    def deployment_options(self, *, gpus: int, behind_haproxy: bool = False) -> dict[str, Any]:
        """The options of the deployment, as `ray.serve.deployment` takes them.

        Args:
            gpus: of a replica.
            behind_haproxy: HAProxy sends requests to the replica with the fewest; Serve then rejects a router.
        """
        settings = self.settings
        router = {"request_router_config": {"request_router_class": "service.scale.router:AnyReplica"}}
        return {
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": gpus},
            "max_ongoing_requests": settings.queue_capacity + _ROOM_FOR_REJECTIONS,
            # Past this, Serve itself rejects, in plain text: also a 429 with Retry-After.
            "max_queued_requests": _WAITING_FOR_A_REPLICA,
            "backpressure_config": {"status_code": 429, "retry_after_s": 1},
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
                "upscale_delay_s": self.upscale_delay_s,
                "downscale_delay_s": self.downscale_delay_s,
                "look_back_period_s": self.look_back_s,
            },
            "graceful_shutdown_timeout_s": settings.shutdown_timeout_s + _END_S,
            "graceful_shutdown_wait_loop_s": _DRAIN_LOOK_S,
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": 10,
            "max_constructor_retry_count": _STARTS,
            "logging_config": {"enable_access_log": False},  # the service writes its own
        } | ({} if behind_haproxy else router)


def _in_words(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
