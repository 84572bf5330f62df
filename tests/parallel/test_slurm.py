"""Training under SLURM: a stand-in for srun starts tasks with its variables, and requeues a job that lost a node."""

import os
import signal
import time

import pytest
from launched import Train, assert_equal, one_error, weights
from runs import free_port, make_horizons

pytestmark = pytest.mark.usefixtures("forked_workers")

STEPS = ("schedule.steps=8", "checkpoint.every=1", "checkpoint.keep=100")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("data"))


def srun(data, folder, *options, tasks=2, requeued=0, fault="", **variables):
    """What srun does on two machines with one task each; of the tasks' environment what ccnet reads."""
    (folder / "marks").mkdir(exist_ok=True)
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NODELIST": "localhost,other",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_LOCALID": "0",
        "MASTER_PORT": str(free_port()),
    }
    if requeued:
        job["SLURM_RESTART_COUNT"] = str(requeued)
    words = ("--timeout", 20, "--join-timeout", 20, *options)
    return [
        Train(data, folder, *words, settings=STEPS, fault=fault, **job, **variables, SLURM_PROCID=str(task))
        for task in range(tasks)
    ]


@pytest.mark.slow
def test_a_requeued_job_goes_on_from_its_newest_checkpoint(data, tmp_path):
    tasks = srun(data, tmp_path, fault="train")
    tasks[0].wait_for_mark()
    checkpoints = tasks[0].run / "checkpoints"
    while not (checkpoints / "step_00000003.json").exists():
        time.sleep(0.01)
    # the node of the second task fails; srun kills the other one
    for task in reversed(tasks):
        os.kill(task.pid, signal.SIGKILL)
        task.end()
    for code, output, _ in [task.end() for task in srun(data, tmp_path, requeued=1)]:
        assert code == 0, output
    (tmp_path / "whole").mkdir()
    for code, output, _ in [task.end() for task in srun(data, tmp_path / "whole")]:
        assert code == 0, output
    assert_equal(weights(tasks[0].run), weights(tmp_path / "whole" / "run"))


def test_a_job_that_lost_a_node_ends_with_one_line(data, tmp_path):
    tasks = srun(data, tmp_path, fault="train")
    tasks[0].wait_for_mark()
    os.kill(tasks[1].pid, signal.SIGKILL)
    code, output, _ = tasks[0].end()
    assert code == 3 and "process 0: lost the other processes" in one_error(output), output


def test_another_job_does_not_replace_the_first_one_s_run(data, tmp_path):
    """Without the count of requeues the folder belongs to another run."""
    for requeued, words in ((0, "2 processes"), (1, "nothing to do")):
        ended = [task.end() for task in srun(data, tmp_path, requeued=requeued)]
        assert [code for code, _, _ in ended] == [0, 0] and words in ended[0][1], ended
    ended = [task.end() for task in srun(data, tmp_path)]
    assert [code for code, _, _ in ended] == [2, 2] and "is not an empty folder" in one_error(ended[0][1])
