"""Segment a stream of tasks by one process, by several of this machine, or by those of torchrun or SLURM."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ccnet_cli.children import Child
from ccnet_cli.errors import CCNetError, EnvironmentFailure, PeerLost, hush
from ccnet_cli.inference.artifact import Artifact, Network, open_artifact
from ccnet_cli.inference.dispatch import TASK_SECONDS, Dispatcher
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.inference.stream import Area, Collector, Keep, Outcome, StreamSegmenter, Task
from ccnet_cli.inference.task_queue import Message, TaskQueue, decode_error, encode_error, name_process
from ccnet_cli.inference.views import Views
from ccnet_cli.media import rasters, sources
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, Worker, share_store
from ccnet_cli.progress import Progress

# images, or frames, between two lines of progress where there is no terminal
PROGRESS_IMAGES = 20
# processes that may be replaced: the dispatcher ends a run whose processes die without doing anything
REPLACEMENTS = 1 << 30

Tasks = Iterator[Task | None]


@dataclass(frozen=True)
class Recipe:
    """What a process needs to segment tasks: the checkpoint, how it runs, the images it is made for, what is kept."""

    checkpoint: Path
    preset: str | None
    overrides: tuple[str, ...]
    runtime: Runtime
    keep: Keep
    images: int = 1
    task_seconds: float = TASK_SECONDS
    strict: bool = False

    def open(self) -> Artifact[Network]:
        """The checkpoint."""
        return open_artifact(self.checkpoint, self.preset, self.overrides, self.strict)

    def prepare(self, artifact: Artifact[Network]) -> Segmenter:
        """The checkpoint's network, as it runs."""
        network = self.runtime.prepare(artifact, self.images)
        budget = self.runtime.budget(artifact, network)
        views = Views.of(artifact.preset.eval, artifact.classes, budget.fit)
        return Segmenter(network, views, torch.device(self.runtime.device), artifact.clip)


def segment_here(recipe: Recipe, artifact: Artifact[Network], tasks: Tasks, collector: Collector) -> int:
    """Segment tasks in this process; the number of the signal that stopped it, or 0."""

    def show_frames(count: int) -> Progress:
        # two bars do not fit on a terminal
        collector.progress.close()
        return Progress(count, unit="frame", every=PROGRESS_IMAGES)

    with record_signals() as received:
        segmenter, classes = recipe.prepare(artifact), artifact.classes
        # the weights that it was made of go
        del artifact
        work = StreamSegmenter(
            segmenter, classes, recipe.keep, collector.add, lambda: next(iter(received), 0), show_frames
        )
        work.run(tasks)
    return next(iter(received), 0)


def segment_in_processes(
    recipe: Recipe, tasks: Tasks, collector: Collector, count: int, forked: list[Child] | None = None
) -> int:
    """Segment tasks in N processes of this machine, as segment_here; they share its threads."""
    threads = max(1, torch.get_num_threads() // count)
    with _dispatch(recipe, tasks, collector) as dispatcher:
        arguments = (recipe, dispatcher.address, dispatcher.key, threads)
        signals = supervisor.run(
            _segment_in_worker, arguments, count, restarts=REPLACEMENTS, independent=True, forked=forked
        )
    return next((number for number in signals if number), 0)


def lead_launch(recipe: Recipe, artifact: Artifact[Network], tasks: Tasks, collector: Collector, group: Group) -> int:
    """Segment tasks with the processes that a launcher started, of which this is the first, as segment_here."""
    with _dispatch(recipe, tasks, collector, remote=True) as dispatcher:
        address = (os.environ.get("MASTER_ADDR", "127.0.0.1"), dispatcher.address[1])
        runtime: dict[str, Any] = {"precision": recipe.runtime.precision, "compile": recipe.runtime.compile}
        runtime["calibration"] = [str(path) for path in recipe.runtime.calibration]
        runtime |= {"memory": recipe.runtime.memory, "firm": recipe.runtime.firm}
        invitation = {"address": address, "key": dispatcher.key.hex(), "images": recipe.images, "runtime": runtime}
        group.store.set(_key(group), json.dumps(invitation))
        queue = TaskQueue(("127.0.0.1", address[1]), dispatcher.key, name_process(0))
        return _segment_queue(Worker(), group, recipe, queue, artifact)


def refuse_launch(error: CCNetError, group: Group) -> None:
    """Let the other processes of a launch end with an error that this one reports."""
    group.store.set(_key(group), json.dumps({"failed": encode_error(error)}))


def follow_launch(recipe: Recipe, group: Group) -> None:
    """Segment what the first process of a launch hands out."""
    invitation = json.loads(group.store.get(_key(group)))
    if "failed" in invitation:
        failure = decode_error(invitation["failed"])
        failure.reported = True
        raise failure
    queue = TaskQueue(tuple(invitation["address"]), bytes.fromhex(invitation["key"]), name_process(group.rank))
    recipe = replace(recipe, runtime=_read_runtime(invitation["runtime"]), images=invitation["images"])
    _segment_queue(Worker(), group, recipe, queue)


def _read_runtime(values: dict[str, Any]) -> Runtime:
    return Runtime(**values | {"calibration": tuple(map(Path, values["calibration"]))})


def _key(group: Group) -> str:
    return f"predict-{group.attempt}"


@contextmanager
def _dispatch(recipe: Recipe, tasks: Tasks, collector: Collector, remote: bool = False) -> Iterator[Dispatcher]:
    """A dispatcher that serves tasks and collects their outcomes; its first error is raised when the block ends."""

    def collect(task: Message, result: Message | None) -> None:
        source = Path(task["source"])
        if result is None:
            why = "two processes that segmented it died or hung"
            error = EnvironmentFailure(f"source {source}", why, "see if memory ran out, or use --mode sliding")
            collector.add(Outcome(task["index"], source, error=error))
        else:
            collector.add(_read_outcome(task, result))

    messages = (None if task is None else _task_message(task) for task in tasks)
    dispatcher = Dispatcher(messages, collect, remote, recipe.task_seconds)
    dispatcher.start()
    try:
        yield dispatcher
    except BaseException as error:
        dispatcher.stop(error)
        raise
    finally:
        dispatcher.close()
    if dispatcher.error is not None:
        raise dispatcher.error


def _segment_in_worker(worker: Worker, recipe: Recipe, address: Any, key: bytes, threads: int) -> int:
    with share_store(torch.device(recipe.runtime.device)) as group:
        torch.set_num_threads(threads)
        return _segment_queue(worker, group, recipe, TaskQueue(address, key, name_process(group.rank)))


def _segment_queue(
    worker: Worker, group: Group, recipe: Recipe, queue: TaskQueue, artifact: Artifact[Network] | None = None
) -> int:
    """Segment what a dispatcher hands to this process; the number of the signal that stopped it, or 0."""
    recipe = replace(recipe, runtime=replace(recipe.runtime, device=str(group.device)))

    def report(outcome: Outcome) -> None:
        queue.send(_outcome_message(outcome))

    try:
        # the first process has said what there is to say of them
        with hush(artifact is None):
            artifact = artifact or recipe.open()
            segmenter, classes = recipe.prepare(artifact), artifact.classes
            del artifact
        with worker.signals(group) as received:

            def stop_signal() -> int:
                return received() or (signal.SIGTERM if queue.stopped else 0)

            work = StreamSegmenter(segmenter, classes, recipe.keep, report, stop_signal, working=queue.working)
            for run in queue.runs(received):
                work.run(map(_read_task, run), ahead=1)
            return received()
    except BaseException as error:
        # the dispatcher stops the others, and reports what is no bug
        known = None if isinstance(error, PeerLost) or not isinstance(error, CCNetError) else encode_error(error)
        queue.send({"left": True} | ({"failed": known} if known else {}))
        if known is None:
            raise
        return 0


def _task_message(task: Task) -> Message:
    targets = {format: str(path) for format, path in task.targets.items()}
    # how long a video takes depends on its length
    by_windows = any(map(rasters.is_raster, task.targets.values()))
    unlimited = {"unlimited": True} if sources.is_video(task.source) or by_windows else {}
    return {"index": task.index, "source": str(task.source), "targets": targets} | unlimited


def _read_task(message: Message) -> Task:
    targets = {format: Path(path) for format, path in message["targets"].items()}
    return Task(message["index"], Path(message["source"]), targets, message.get("retried", False))


def _outcome_message(outcome: Outcome) -> Message:
    area = outcome.area
    return {
        "index": outcome.index,
        "written": bool(outcome.files),
        "area": None if area is None else [area.size, area.frames, area.pixels],
        "error": None if outcome.error is None else encode_error(outcome.error),
    }


def _read_outcome(task: Message, result: Message) -> Outcome:
    source, area = Path(task["source"]), result["area"]
    return Outcome(
        result["index"],
        source,
        tuple(map(Path, task["targets"].values())) if result["written"] else (),
        None if area is None else Area(source, (area[0][0], area[0][1]), area[1], tuple(area[2])),
        None if result["error"] is None else decode_error(result["error"]),
    )


@contextmanager
def record_signals() -> Iterator[list[int]]:
    """Record signals instead of ending in the middle of a file; a second one ends the process as usual."""
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def record(number: int, _: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    # other threads may not set handlers, and no signal reaches them
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup lets the work outlive its terminal
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                handlers[number] = signal.signal(number, record)
    try:
        yield received
    finally:
        restore()
