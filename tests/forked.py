"""Run the entry scripts many times, each in a process that is forked from one with everything imported.

As a user's call but for the seconds that the imports take: ``python tests/forked.py`` reads requests from standard
input, a JSON object a line, and answers with the exit status of each.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

# Imported once, for all. The scripts import those of other projects only where they use them.
IMPORTED = [
    "matplotlib.figure",
    "sklearn.datasets",
    "sklearn.linear_model",
    "torch.utils.tensorboard",
    "torch_fidelity",
    "torchvision.datasets",
    "torchvision.utils",
    "cli.launch",
    "evaluation.evaluate",
    "training.loop",
]


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            _run(**request)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _run(
    script: str,
    args: list[str],
    cwd: str,
    env: dict[str, str],
    said: list[str],
    limit: int,
    extension: str | None = None,
    configs: str | None = None,
) -> None:
    """Run ``python SCRIPT ARGS`` in ``cwd`` with its output in two files; kill it after ``limit`` seconds.

    Register the entries of the module ``extension`` first, and use ``configs`` in place of configs/.
    """
    signal.alarm(limit)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if extension is not None:
        import cli.entry_point
        import cli.options

        cli.entry_point.CONFIGS = cli.options.CONFIGS = Path(configs)
        for registry, name, added in importlib.import_module(extension).ENTRIES:
            registry[name] = added
    sys.argv = [script, *args]
    code: int = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        else:
            code = error.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
