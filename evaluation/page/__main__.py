"""Write the page of a run: python -m evaluation.page RUN [RUN ...] [options]

For one run this writes RUN/page.html: what was run, its data, curves, samples through training, drawings, evaluations,
and the commands that go on with it. For several runs it writes page.html in the current folder: their curves, samples
and evaluations beside each other, and the differences of their configurations. A page is one file that needs no network
and no other file; one that was written before is replaced. The data and the weights are not read.

Evaluations and drawings are searched in the run, and in the folders eval and vis, the defaults of run_eval.py and
run_vis.py. Those belong to the run whose directory is their option load_dir.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.page.outputs import Output, find_outputs
from evaluation.page.pages import comparison_page, run_page
from evaluation.page.render import write_page
from evaluation.page.run_record import read_run
from utils.errors import ArgumentParser, InputError, UserError, printable


def write(
    paths: Sequence[Path],
    evaluations: Sequence[Path] | None = None,
    drawings: Sequence[Path] | None = None,
    output: Path | None = None,
) -> Path:
    """Write the page of a run, or the comparison of several.

    Args:
        paths: directories of the runs.
        evaluations: directories that are searched for evaluations; None for ``eval``, if it is there.
        drawings: directories that are searched for drawings; None for ``vis``, if it is there.
        output: file to write; None for RUN/page.html, or page.html of several runs.

    Returns:
        The file that was written.

    Raises:
        InputError: naming the run or file at fault.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run is given twice")
    runs = [read_run(path) for path in paths]

    def find(folders: Sequence[Path] | None, name: str) -> list[list[Output]]:
        found = find_outputs(paths, [Path(name)] if folders is None else folders, name, folders is not None)
        return [found[path] for path in paths]

    evaluated = find(evaluations, "eval")
    if len(runs) == 1:
        html = run_page(runs[0], evaluated[0], find(drawings, "vis")[0])
        output = paths[0] / "page.html" if output is None else output
    elif drawings is not None:
        raise InputError("--drawings is for the page of one run: a comparison shows the samples drawn while training")
    else:
        html, output = comparison_page(runs, evaluated), Path("page.html") if output is None else output
    write_page(output, html)
    return output


def main() -> None:
    """Parse the command line and write a page."""
    parser = ArgumentParser(
        prog="python -m evaluation.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directory of a run")
    parser.add_argument("--evaluations", type=Path, nargs="+", metavar="DIR", help="folders of evaluations")
    parser.add_argument("--drawings", type=Path, nargs="+", metavar="DIR", help="folders of drawings")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write")
    options = parser.parse_args()
    try:
        path = write(options.runs, options.evaluations, options.drawings, options.output)
    except (UserError, OSError) as error:
        sys.exit(printable(str(error)))
    print(printable(f"{path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser"))


if __name__ == "__main__":
    main()
