"""The application for `serve run` and `serve deploy`."""

# Ray Serve reads the annotation of `app`, so it must be no string.
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from mlx_guarded_llm.server import Settings, create_app
from mlx_guarded_llm.server.settings import load_settings

from .backend import RayBackend
from .replica import Replica

MOST = 1_000_000  # calls of a replica under way: its own queue is what has a bound
NAME = "MLXGuarded"  # of the deployment of replicas
INGRESS = "Ingress"  # of that of the web application
ROUTER = "mlx_guarded_ray.router:GuardedRouter"
GRACE = 10.0  # seconds for a replica to end after the drain


class Cluster(BaseModel):
    """What `serve run mlx_guarded_ray:app name=value ...` takes, and `args` of a Serve config.

    Attributes:
        config: the file of `mlx-guarded serve`. Its [guard] is that of each replica.
        replicas: how many there are, always; or
        min_replicas: how many there are at least, and
        max_replicas: at most: more are started when the queue is old.
        queue_age: seconds that the oldest request may wait before one more is started.
        upscale_delay: seconds that it must be so, before each step.
        downscale_delay: seconds that a replica must have nothing to do before one is ended.
        cpus: of a replica, as Ray counts them.
        gpus: of a replica.
        memory: bytes of a replica, as Ray counts them; the guard's budget is in the file.
        ingresses: replicas of the web application.
        stats_period: seconds between two reports of a replica, to routers and the autoscaler.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path | None = None
    replicas: int | None = Field(default=None, ge=1)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    queue_age: float = Field(default=10.0, gt=0)
    upscale_delay: float = Field(default=30.0, ge=0)
    downscale_delay: float = Field(default=600.0, ge=0)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    memory: int | None = Field(default=None, ge=1)
    ingresses: int = Field(default=1, ge=1)
    stats_period: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replicas is not None and self.max_replicas is not None:
            raise ValueError("give replicas, or min_replicas and max_replicas")
        return self

    @property
    def actor(self) -> dict[str, Any]:
        """What a replica takes of its node."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return options | ({} if self.memory is None else {"memory": self.memory})


class Ingress:
    """The web application of `mlx-guarded serve`, in front of all replicas.

    Args:
        replicas: the handle of their deployment.
        settings: of the server, as values.

    Attributes:
        backend: that of the application.
    """

    def __init__(self, replicas: DeploymentHandle[Any], settings: Mapping[str, Any]) -> None:
        self._settings = Settings.model_validate(settings)
        self.backend = RayBackend(replicas, self._settings)

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_app(self.backend, self._settings)


def app(args: Cluster) -> serve.Application:
    """The application: `serve run mlx_guarded_ray:app config=server.toml replicas=2`."""
    return build(load_settings(args.config).settings, args)


def build(
    settings: Settings,
    cluster: Cluster,
    *,
    router: str = ROUTER,
    replica: type[Replica] = Replica,
    ingress: type[Ingress] = Ingress,
) -> serve.Application:
    """The application for settings.

    Args:
        settings: of the server.
        cluster: how many replicas, and what each takes.
        router: where one of Ray Serve's request routers is.
        replica: what each replica is.
        ingress: what each replica of the web application is.
    """
    scaling: dict[str, Any] = {"num_replicas": cluster.replicas or cluster.min_replicas}
    if cluster.max_replicas is not None:
        policy = AutoscalingPolicy(
            policy_function="mlx_guarded_ray.scaling:QueueAge",
            policy_kwargs={"queue_age": cluster.queue_age},
        )
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=cluster.min_replicas,
                max_replicas=cluster.max_replicas,
                upscale_delay_s=cluster.upscale_delay,
                downscale_delay_s=cluster.downscale_delay,
                metrics_interval_s=cluster.stats_period,
                policy=policy,
            )
        }
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)  # the server has its own
    replicas = serve.deployment(
        replica,
        name=NAME,
        logging_config=quiet,
        ray_actor_options=cluster.actor,
        max_ongoing_requests=MOST,
        graceful_shutdown_timeout_s=settings.drain + GRACE,
        request_router_config=RequestRouterConfig(
            request_router_class=router,
            request_routing_stats_period_s=cluster.stats_period,
        ),
        **scaling,
    )
    front = serve.deployment(
        serve.ingress(None)(ingress),
        name=INGRESS,
        logging_config=quiet,
        num_replicas=cluster.ingresses,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=settings.limits.connections,
    )
    values = settings.model_dump()
    return front.bind(replicas.bind(_of_replica(values)), _of_ingress(values))


def _of_replica(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nobody but the ingress asks a replica, so keys are none of its business."""
    own = {"host": "127.0.0.1", "port": 0, "uds": None, "share": False}
    return {**values, **own, "keys": {}, "key_file": None}


def _of_ingress(values: Mapping[str, Any]) -> dict[str, Any]:
    """Models are loaded at the start by each replica."""
    models = {
        name: {**entry, "pin": False, "preload": False} for name, entry in values["models"].items()
    }
    return {**values, "models": models, "share": False, "uds": None}
