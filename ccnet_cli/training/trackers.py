"""Programs beside a run that show its numbers and pictures: TensorBoard, Weights & Biases, MLflow; each is an extra."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ccnet_cli.errors import notice
from ccnet_cli.media.images import Pixels

# where the programs need a project's name and their own settings name none
PROJECT = "ccnet"


class Tracker(Protocol):
    """Takes what a run logs; values by their names, and pictures as BGR (H, W, 3)."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""

    def picture(self, step: int, name: str, picture_bgr: Pixels) -> None:
        """Show a picture of a step."""

    def close(self) -> None:
        """End the run."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, preset: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture_bgr: Pixels) -> None:
        """Show a picture of a step."""
        self.writer.add_image(name, _rgb(picture_bgr), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of the project in WANDB_PROJECT, continued where it knows the folder."""

    def __init__(self, folder: Path, preset: str) -> None:
        import wandb

        known = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        named: dict[str, Any] = {"project": project, "name": folder.name, "id": known, "resume": "allow"}
        self.image: Any = wandb.Image
        self.run: Any = wandb.init(**named, dir=str(folder), config={"preset": preset})

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""
        self.run.log(dict(values), step=step)

    def picture(self, step: int, name: str, picture_bgr: Pixels) -> None:
        """Show a picture of a step."""
        self.run.log({name: self.image(_rgb(picture_bgr))}, step=step)

    def close(self) -> None:
        """End the run there."""
        self.run.finish()


class MLflow:
    """A run of the experiment in MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, preset: str) -> None:
        import mlflow

        self.mlflow: Any = mlflow
        mlflow.start_run(run_name=folder.name)
        mlflow.log_text(preset, "preset.yaml")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""
        # in a store of files, loss/ohem would have to lie in the file loss
        self.mlflow.log_metrics({name.replace("/", "."): value for name, value in values.items()}, step=step)

    def picture(self, step: int, name: str, picture_bgr: Pixels) -> None:
        """Show a picture of a step."""
        self.mlflow.log_image(_rgb(picture_bgr), f"{name}/{step:08d}.png")

    def close(self) -> None:
        """End the run there."""
        self.mlflow.end_run()


# by the preset's key in `log`, which is the extra and the module too
TRACKERS: Mapping[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Trackers:
    """Those that a preset asks for; one that fails is reported once and asked no more, and the run goes on."""

    def __init__(self, folder: Path, names: Sequence[str] = (), preset: str = "") -> None:
        self.active: dict[str, Tracker] = {}
        for name in names:
            with _Tolerant(self, name):
                self.active[name] = TRACKERS[name](folder, preset)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""
        for name, tracker in [*self.active.items()]:
            with _Tolerant(self, name):
                tracker.numbers(step, values)

    def picture(self, step: int, title: str, picture_bgr: Pixels) -> None:
        """Show a picture of a step."""
        for name, tracker in [*self.active.items()]:
            with _Tolerant(self, name):
                tracker.picture(step, title, picture_bgr)

    def close(self) -> None:
        """End the run everywhere."""
        for name, tracker in [*self.active.items()]:
            with _Tolerant(self, name):
                tracker.close()
        self.active.clear()


class _Tolerant:
    """Turns what a tracker raises, of whatever kind, into a notice."""

    def __init__(self, trackers: Trackers, name: str) -> None:
        self.trackers, self.name = trackers, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, Exception):
            return False
        notice(f"warning: log.{self.name}: {error}; training goes on without it")
        self.trackers.active.pop(self.name, None)
        return True


def _rgb(picture_bgr: Pixels) -> Pixels:
    return picture_bgr[..., ::-1].copy()
