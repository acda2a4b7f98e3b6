"""python -m bench.index: see `--help`."""

import os
import sys

from bench.index.options import InputError, parse

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    """Runs the bench; 2 for what cannot be measured, with one line that says why."""
    try:
        options = parse(arguments)
        # Read when these libraries are loaded, which is why they are not imported above.
        os.environ |= dict.fromkeys(_THREADS, str(options.threads))
        from bench.index.run import run

        run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
