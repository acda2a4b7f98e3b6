"""When Python's garbage collector runs, and what it looks at."""

import gc

_NEW = 20_000  # objects that are made and not freed until the next look at what is new; CPython's 700 are a dozen calls
_ROUNDS = 2  # more looks than that before one at what is older: 180,000 objects, with CPython's numbers 85,000


def freeze(*, young: bool = False) -> None:
    """What is held now lives as long as the server: full collections, which stop every request, no longer visit it.

    Also sets how often what is new is collected. young: while calls are answered, only that is collected before, in a few
    milliseconds. The collection after the freeze visits nothing; it is what CPython's rule for the next full one counts from.
    Without it garbage in circles, such as errors with their tracebacks, piles up to a quarter of all that was ever loaded.
    """
    gc.set_threshold(_NEW, _ROUNDS, _ROUNDS)
    gc.collect(1 if young else 2)
    gc.freeze()
    gc.collect()
