"""Whether a run still gets better on the validation split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ccnet_cli.config.schema import EarlyStop


@dataclass
class Patience:
    """The best figure so far, its step, how many evaluations since then were no better, and the last one's step."""

    settings: EarlyStop
    best: float = -1.0
    best_step: int = 0
    waited: int = 0
    last_step: int = 0

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation, once for each step; a figure that is not a number is no better."""
        if step <= self.last_step:
            return
        self.last_step, figure = step, metrics[self.settings.metric]
        if figure > self.best + (self.settings.min_gain if self.best_step else 0.0):
            self.best, self.best_step, self.waited = figure, step, 0
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return self.waited >= self.settings.patience

    @property
    def ends_next(self) -> bool:
        """Whether the run ends after the next evaluation, if that is no better."""
        return self.waited + 1 >= self.settings.patience

    def describe(self) -> str:
        """What ended the run."""
        count = f"{self.waited} evaluation{'s' * (self.waited > 1)}"
        best = f"the best, {self.best:.4f}, was at step {self.best_step}" if self.best_step else "none has a score"
        return f"stopped early: {count} without a better {self.settings.metric}; {best}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "last_step": self.last_step}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; nothing is kept of a run that knew no patience."""
        for key in self.state():
            setattr(self, key, state.get(key, getattr(self, key)))
