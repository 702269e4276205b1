"""All that is measured in a moment: python -m benchmarks; benchmarks.data and benchmarks.checkpoint take longer."""

import sys
import time

from benchmarks import kernel, likelihood, sampling, scaling, startup, step


def main() -> None:
    sys.argv[1:] = []
    for benchmark in (kernel, step, sampling, likelihood, scaling, startup):
        start = time.perf_counter()
        print(f"== {benchmark.__name__}: {str(benchmark.__doc__).splitlines()[0].split('?')[0]}?", flush=True)
        benchmark.main()
        print(f"({time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
