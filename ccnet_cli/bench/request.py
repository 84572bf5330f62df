"""What to measure and how: requests that the command line makes without torch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Run:
    """The device's name, CPU threads (None for as many as torch has), rounds, and the seconds that threads settle for.

    New threads may share a core for a second.
    """

    device: str = "auto"
    threads: int | None = None
    repeats: int = 5
    settling: float = 1.0


@dataclass(frozen=True)
class Work:
    """Passes of attention over a map (batch, channels, *size), and the keys of a pixel, None for its cross."""

    size: tuple[int, int] = (97, 97)
    channels: int = 512
    recurrence: int = 2
    batch: int = 1
    keys: int | None = None

    def __str__(self) -> str:
        return f"{self.batch} x {self.channels} x {self.size[0]}x{self.size[1]}"

    @property
    def query_channels(self) -> int:
        """Channels of query and key, an eighth of the map's as in the authors' release."""
        return max(self.channels // 8, 1)

    @property
    def gflop(self) -> float:
        """GFLOP of the projections with bias and the two products over a pixel's keys, H + W - 1 of a cross.

        It gives the paper's table (TPAMI, cost of context modules): 8.27 per pass, 108.2 for non-local at 97x97, 512.
        """
        H, W = self.size
        projections = 2 * H * W * (self.channels + 1) * (2 * self.query_channels + self.channels)
        products = 2 * H * W * (self.keys or H + W - 1) * (self.query_channels + self.channels)
        return self.batch * self.recurrence * (projections + products) / 1e9

    def gbytes(self, itemsize: int) -> float:
        """Gigabytes of a forward pass that reads and writes each tensor once per step that needs it.

        The map is read by the projections and the residual; query, key, value and the float32 weights over the keys
        (H + W of a cross) are written and read; the result is written. itemsize is bytes per entry of the map.
        """
        H, W = self.size
        features = itemsize * (2 * self.channels + 2 * (2 * self.query_channels + self.channels) + self.channels)
        weights = 2 * 4 * (self.keys or H + W)
        return self.batch * self.recurrence * H * W * (features + weights) / 1e9

    def non_local(self) -> "Work":
        """The work of one non-local block on this map: every pixel is a key."""
        return replace(self, recurrence=1, keys=self.size[0] * self.size[1])
