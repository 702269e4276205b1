"""The launchers of hydra/launcher=slurm, submitit_slurm and submitit_local.

The Slurm launcher of hydra-submitit-launcher, which ``SlurmLauncher`` extends, counts a job whose function raised as a
success, and learns of killed jobs only from ``sacct``: after minutes, or never on a cluster without accounting.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf, open_dict

from cli.entry_point import set_up

# submitit is imported where it is used: every script imports this module when it starts.

POLL = 5.0  # seconds between calls of squeue
SETTLED = 3  # polls in a row in which a job without a result has ended: it may be requeued, and files may arrive late
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"TIMEOUT", "FORGOTTEN"}  # the last: Slurm forgets a job minutes after its end


@dataclass
class _Submitted:
    """A job of a sweep.

    Attributes:
        job: submitit's object for the job.
        overrides: overrides of the run.
        number: number of the run.
        name: Slurm's number of the job, with the overrides that other jobs of the sweep do not have.
        settled: number of polls in a row in which Slurm reported that the job has ended.
        outcome: result of the job; None until it is known.
        failure: reason why there is no result, in one line.
    """

    job: Any
    overrides: list[str]
    number: int
    name: str
    settled: int = 0
    outcome: JobReturn | None = None
    failure: str | None = None


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Launcher of a Slurm job for each run of a sweep; a failed run is FAILED for Slurm and reported in one line."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run the job, in each of its tasks; if it fails, write the reason for ``launch`` and exit with status 1."""
        set_up()
        outcome = super().__call__(*arguments)
        try:
            _ = outcome.return_value  # raises what the job raised
        except Exception as error:
            in_one_line = isinstance(error, CompactHydraException)
            _write_reason(str(error) if in_one_line else f"{type(error).__name__}: {error}")
            sys.exit(1)  # an exception would be shown with its traceback
        return outcome

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait until all have ended.

        Raises:
            CompactHydraException: if some failed, after a line about each on standard error.
        """
        submitted = self._submit([list(overrides) for overrides in job_overrides], initial_job_idx)
        while waiting := [one for one in submitted if one.outcome is None and one.failure is None]:
            time.sleep(POLL)
            states = _states([one.job.job_id for one in waiting])
            for one in waiting:
                self._update(one, states)
        failed = sum(one.failure is not None for one in submitted)
        if failed:
            raise CompactHydraException(f"{failed} of {len(submitted)} jobs failed")
        return [one.outcome for one in submitted if one.outcome is not None]

    def _submit(self, job_overrides: list[list[str]], first: int) -> list[_Submitted]:
        import submitit
        from hydra.core.singleton import Singleton

        assert self.config is not None
        sweep_dir = Path(self.config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        if mode := self.config.hydra.sweep.get("mode"):
            sweep_dir.chmod(int(str(mode), 8))
        params = dict(self.params)
        executor = submitit.AutoExecutor(
            params.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=params.pop("max_num_timeout")
        )
        shared = OmegaConf.structured(BaseQueueConf)
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": params[key] for key in params})
        numbers = range(first, first + len(job_overrides))
        arguments = [
            (overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for overrides, number in zip(job_overrides, numbers, strict=True)
        ]
        jobs = executor.map_array(self, *zip(*arguments, strict=True))
        common = set.intersection(*map(set, job_overrides))
        submitted = []
        for job, overrides, number in zip(jobs, job_overrides, numbers, strict=True):
            name = " ".join([f"job {job.job_id}", *(override for override in overrides if override not in common)])
            print(f"submitted {name}", file=sys.stderr)
            submitted.append(_Submitted(job, overrides, number, name))
        return submitted

    def _update(self, one: _Submitted, states: dict[str, str] | None) -> None:
        """Record and print the outcome of a job, if it has ended."""
        results = _results(one.job)
        if len(results) == one.job.num_tasks and all(kind == "success" for kind, _ in results):
            one.outcome = results[0][1]
            return
        state = "unknown" if states is None else states.get(one.job.job_id, "FORGOTTEN")
        one.settled = one.settled + 1 if state in ENDED else 0
        reasons = [text for kind, text in results if kind == "error"]
        if one.settled < (1 if reasons else SETTLED):
            return
        if reasons:  # the first in time; other tasks failed because this one was gone
            one.failure = reasons[0].strip().splitlines()[-1]
        else:
            one.failure = f"ended as {state}{_last_line_of_slurm(one.job.paths.stderr)}"
            self._log(one)
        line = f"{one.name}: {one.failure}"
        print("".join(char if char.isprintable() else " " for char in line), file=sys.stderr)

    def _log(self, one: _Submitted) -> None:
        """Append the failure to the ``logs`` of a run whose process could not write it itself."""
        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, one.overrides)
        with open_dict(config.hydra.job):
            config.hydra.job.id, config.hydra.job.num = one.job.job_id, one.number
        run_dir = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir))
        if run_dir.is_dir():  # else the job has never run
            with (run_dir / "logs").open("a") as logs:
                logs.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} ERROR {one.name}: {one.failure}\n")


def _write_reason(reason: str) -> None:
    """Write the reason of a failure to the file in which submitit stores the exception of a task."""
    from submitit import JobEnvironment
    from submitit.core import utils

    with utils.temporary_save_path(JobEnvironment().paths.result_pickle) as path:
        utils.cloudpickle_dump(("error", reason), path)


def _results(job: Any) -> list[tuple[str, Any]]:
    """Read ("success", return value) or ("error", reason) of each task that was not killed, in order of their ends."""
    from submitit.core import utils

    # The folder is listed, because a network file system caches for a while that a file did not exist.
    paths = sorted(job.paths.folder.glob(f"{job.job_id}_*_result.pkl"), key=lambda path: path.stat().st_mtime)
    return [utils.pickle_load(path) for path in paths]


def _states(jobs: list[str]) -> dict[str, str] | None:
    """Return the state of each job by squeue; None if it does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
    command.append(f"--jobs={','.join({job.split('_')[0] for job in jobs})}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return dict(line.split()[:2] for line in answer.stdout.splitlines())


def _last_line_of_slurm(path: Path) -> str:
    """Return the last line that Slurm itself wrote to the log of a job, such as which task was killed."""
    if not path.exists():
        return ""
    lines = path.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(("srun: error:", "slurmstepd: error:"))]
    return f": {errors[-1]}" if errors else f"; its log is {path}"


class LocalLauncher(submitit_launcher.LocalLauncher):
    """Launcher of processes on this machine for each run of a sweep."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run the job, in each of its tasks."""
        set_up()
        return super().__call__(*arguments)


# Hydra only creates launchers from classes in the package hydra_plugins: these replace the classes that they extend.
LAUNCHERS = {f"{submitit_launcher.__name__}.{name.__name__}": name for name in (SlurmLauncher, LocalLauncher)}
