"""Places besides metrics.jsonl that a run's scalars go to: `--track tensorboard wandb:my-project`.

A tracker is any object with the three methods of `Tracker`. A package brings one by an entry point
of the group `ssl_train.trackers`: its name is what users type, its object is called with what they
type after the colon, "" if nothing, and returns the tracker.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from ssl_core.config import ConfigError

GROUP = "ssl_train.trackers"


class Tracker(Protocol):
    """Where scalars go. Only the main process has one. It is made before the run is told to it by
    `start`; from then on an exception is a warning, and the run goes on without it."""

    def start(self, folder: Path, run: dict[str, Any]) -> None:
        """Begin, or go on with what `run["run_id"]` began: a resumed run has the same id.

        `folder` is the run folder, `run` what its run.json holds: `run_id`, `method`, `config`.
        """

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        """The scalars of a step. A resumed run may repeat steps, with the same values."""

    def finish(self) -> None:
        """The process is done with the run, which may be resumed later."""


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir RUN`."""

    def __init__(self, project: str) -> None:
        if project:
            raise ConfigError(f"tensorboard:{project}: TensorBoard has no projects, it writes into the run folder")
        from torch.utils.tensorboard import SummaryWriter

        self.writer_of = SummaryWriter

    def start(self, folder: Path, run: dict[str, Any]) -> None:
        self.writer = self.writer_of(str(folder / "tensorboard"))

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, step)

    def finish(self) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases; a resumed run goes on in the same run there."""

    def __init__(self, project: str) -> None:
        self.wandb, self.project = import_module("wandb"), project or None

    def start(self, folder: Path, run: dict[str, Any]) -> None:
        where = {"project": self.project, "dir": str(folder), "name": folder.name}
        self.run = self.wandb.init(**where, id=run["run_id"], resume="allow", config=run["config"])

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        self.run.log(scalars, step=step)

    def finish(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI. The server chooses the id of a run there, so ours is a tag by
    which a resumed run finds it."""

    def __init__(self, experiment: str) -> None:
        self.mlflow, self.experiment = import_module("mlflow"), experiment or "Default"

    def start(self, folder: Path, run: dict[str, Any]) -> None:
        self.client = self.mlflow.MlflowClient()
        found = self.client.get_experiment_by_name(self.experiment)
        where = self.client.create_experiment(self.experiment) if found is None else found.experiment_id
        begun = self.client.search_runs([where], f"tags.ssl_run_id = '{run['run_id']}'", max_results=1)
        if begun:
            self.id = begun[0].info.run_id
            self.client.set_terminated(self.id, "RUNNING")
            return
        self.id = self.client.create_run(where, tags={"ssl_run_id": run["run_id"]}, run_name=folder.name).info.run_id
        for key, value in run["config"].items():
            self.client.log_param(self.id, key, value)

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        for key, value in scalars.items():
            self.client.log_metric(self.id, key, value, step=step)

    def finish(self) -> None:
        self.client.set_terminated(self.id)


class Trackio:
    """trackio, on this machine; a resumed run goes on in the run of the same name."""

    def __init__(self, project: str) -> None:
        self.trackio, self.project = import_module("trackio"), project or "ssl"

    def start(self, folder: Path, run: dict[str, Any]) -> None:
        name = f"{folder.name}-{run['run_id']}"
        self.trackio.init(project=self.project, name=name, config=run["config"], resume="allow")

    def log(self, step: int, scalars: dict[str, float | int]) -> None:
        self.trackio.log(scalars, step=step)

    def finish(self) -> None:
        self.trackio.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}
"""What `--track` knows by itself; each name is the extra that brings its library."""


def tracker(asked: str) -> Tracker:
    """The tracker that `NAME` or `NAME:PROJECT` asks for, not started.

    Raises ConfigError if the name is unknown, or its library is missing.
    """
    name, _, project = asked.partition(":")
    brought = {point.name: point for point in entry_points(group=GROUP)}
    if name not in TRACKERS and name not in brought:
        known = ", ".join([*TRACKERS, *sorted(brought.keys() - TRACKERS.keys())])
        raise ConfigError(
            f"no tracker {name!r}; there are {known}. Another comes with a package that has an entry point {GROUP}"
        )
    try:
        return TRACKERS[name](project) if name in TRACKERS else brought[name].load()(project)
    except ImportError as error:
        if name in TRACKERS:
            what = f"--track {name} needs the extra: pip install 'ssl-train[{name}]'"
            raise ConfigError(f"{what} ({error})") from error
        raise ConfigError(f"--track {name}: {brought[name].value} cannot be imported: {error}") from error
