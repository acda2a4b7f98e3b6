"""python -m tests.index.soak: the contract of every engine over 100,000 random operations each; the result is committed.

The same machine as in test_search_contract.py, with fresh random sequences, longer and many more of them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.database import InMemoryExampleDatabase

from bench.hardware import hardware
from tests.index.engines import ENGINES
from tests.index.test_search_contract import machine

STEPS = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.index.soak", description=__doc__)
    parser.add_argument("--operations", type=int, default=100_000, help="of each engine; 100,000 by default")
    parser.add_argument("--out", type=Path, default=Path("docs/soak/index-contract.json"))
    arguments = parser.parse_args()
    engines = [soak(engine, arguments.operations) for engine in ENGINES]
    result = {"engines": engines, "hardware": hardware()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["passed"] for one in engines) else 1


def soak(engine: str, wanted: int) -> dict[str, Any]:
    """Runs sequences until so many operations have been done, or one breaks the contract."""
    case = machine(engine)
    case.TestCase.settings = settings(  # type: ignore[attr-defined]
        max_examples=100,
        stateful_step_count=STEPS,
        deadline=None,
        database=InMemoryExampleDatabase(),
        suppress_health_check=list(HealthCheck),
    )
    started, passed, failure = time.monotonic(), True, ""
    while passed and case.operations < wanted:  # type: ignore[attr-defined]
        try:
            case.TestCase().runTest()  # type: ignore[attr-defined]
        except Exception as error:  # what it is belongs into the result
            passed, failure = False, repr(error)
    operations = case.operations  # type: ignore[attr-defined]
    seconds = round(time.monotonic() - started, 1)
    print(f"{engine}: {operations} operations in {seconds} s: {'passed' if passed else f'FAILED {failure}'}", flush=True)
    return {"engine": engine, "passed": passed, "operations": operations, "seconds": seconds} | (
        {"failure": failure} if failure else {}
    )


if __name__ == "__main__":
    raise SystemExit(main())
