"""Run all benchmarks: python -m benchmarks. Data and checkpoint use smaller sizes than when run separately."""

import sys
import time

from benchmarks import checkpoint, data, kernel, likelihood, recipes, sampling, scaling, startup, step

ARGUMENTS = {
    kernel: [],
    step: [],
    sampling: [],
    likelihood: [],
    scaling: [],
    startup: [],
    data: ["--images", "3000", "--large", "100000", "--no-step"],
    checkpoint: ["model.nf=64"],
    recipes: [],
}


def main() -> None:
    """Run every benchmark and print how long it took."""
    for benchmark, arguments in ARGUMENTS.items():
        sys.argv[1:] = arguments
        start = time.perf_counter()
        print(f"== {benchmark.__name__}: {str(benchmark.__doc__).splitlines()[0].split('?')[0]}?", flush=True)
        benchmark.main()
        print(f"({time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
