"""Call every public function with valid and with hostile arguments, at random.

    python tests/fuzz.py [--calls 2000] [NAME ...]

Two outcomes are right: a value as the docstring says (shape, dtype, range, finite where it promises), and an error
whose text names an argument, or that a function or network of the call itself raised. Prints one line a function with
its counts and seconds, then every other outcome with the number of its call, which depends only on the function's name
and that number; the exit status is 1 if there is one. NAME is a part of a name such as `metrics.brier_score`.

Not tried: arguments that only ask for more memory or time than a machine has (`queue_size=2**40`), the functions of
`models` that build a network of timm, t-SNE and UMAP in most calls, for the time they take, and corruptions.
"""

import argparse
import contextlib
import inspect
import logging
import multiprocessing
import os
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from helpers import fuzz_arguments  # noqa: E402
from helpers.exported import exported  # noqa: E402
from helpers.fuzz_arguments import MORE, SPECIAL, TABLE, USED, Draw, Table, hostile  # noqa: E402
from helpers.fuzz_values import RIGHT, any_value, finite  # noqa: E402

#: Classes that only hold results or are a base, and functions whose calls take a tenth of a second or more.
LEFT_OUT = (
    *("functional.AnchorLosses", "metrics.WorstQueries", "metrics.EmbeddingMap", "views.Change", "targets.Target"),
    *("models.create_encoder", "models.feature_width", "models.shrink_stem"),
    *("models.save_encoder", "models.load_encoder", "corruptions.Corruption"),
)
ERRORS = (TypeError, ValueError, IndexError)
#: Texts of errors that are right although they name no argument, with the reason.
ACCEPTED = {
    "Expected reduction dim 1 to have non-zero size": "PML's BatchHardMiner takes no batch without rows",
    "torch.nonzero()": "PML's losses and miners list pairs, which the meta device does not have",
}
HOSTILE_SHARE = 0.6


class Target:
    """A public function, or a class with the use of its objects."""

    def __init__(self, name: str, thing: Any) -> None:
        self.name, self.thing = name, thing
        self.table: Table = TABLE | SPECIAL.get(name, {})
        self.first = self._names(thing, MORE.get(name, ()))
        self.use = USED.get(name)
        if self.use is None and inspect.isclass(thing) and name.split(".")[0] in ("losses", "miners"):
            self.use = lambda made: made.forward
        self.second: list[str] = []
        if inspect.isclass(thing) and self.use is not None:
            self.second = self._names(self._forward(), ())

    def _forward(self) -> Any:
        if self.name.startswith("targets."):
            return lambda labels: 0
        if self.name.startswith("models."):
            return (lambda x, online: 0) if self.name.endswith("MomentumEncoder") else (lambda x: 0)
        if self.name.split(".")[0] in ("losses", "miners"):
            return self.thing.forward
        return self.thing.__call__ if "__call__" in vars(self.thing) else (lambda: 0)

    def _names(self, thing: Any, more: tuple[str, ...]) -> list[str]:
        parameters = inspect.signature(thing).parameters.values()
        plain = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        unknown = [name for name in plain if name not in self.table and name != "crop_one"]
        if unknown:
            raise KeyError(f"Expected a strategy in TABLE for each parameter, but {self.name} has {unknown}")
        return [*(name for name in plain if name in self.table), *more]

    def call(self, number: int) -> str | None:
        """Make one call; return None for a value, "" for an error that names an argument, else the description."""
        d = Draw(self.name, number)
        names = list(dict.fromkeys([*self.first, *self.second]))
        given = {name: self.table[name](d) for name in names if name not in self.optional() or d.rng.random() < 0.5}
        if d.rng.random() < HOSTILE_SHARE and given:
            for name in d.rng.sample(sorted(given), min(len(given), d.one_of(1, 1, 2))):
                given[name] = hostile(d, given[name])
        try:
            value = self._run(given)
            found = self._check(value, given)
        except ERRORS as error:
            if of_the_caller(error) or names_an_argument(str(error), [*given, *names]):
                return ""
            found = described(error)
        except (ImportError, FileNotFoundError) as error:
            if self.name in ("models.load_head",):
                return ""
            found = described(error)
        except Exception as error:
            if of_the_caller(error):
                return ""
            found = described(error)
        return None if found is None else f"{found}\n      with {short(given)}"

    def optional(self) -> set[str]:
        found = {p.name for p in inspect.signature(self.thing).parameters.values() if p.default is not p.empty}
        return (found | set(MORE.get(self.name, ()))) - {"ref_emb", "ref_labels"}

    def _run(self, given: dict[str, Any]) -> Any:
        if self.use is None:
            return self.thing(**given)
        made = self.thing(**{name: value for name, value in given.items() if name in self.first})
        later = {name: value for name, value in given.items() if name in self.second}
        if self.name.startswith(("losses.", "miners.")) and "keys" not in self.second:
            later.pop("keys", None)
        return self.use(made)(**later)

    def _check(self, value: Any, given: dict[str, Any]) -> str | None:
        check = RIGHT.get(self.name, finite if self.name.startswith(("metrics.", "search.")) else any_value)
        wrong = check(value, given)
        return None if wrong is None else f"a wrong value, {wrong}"


def names_an_argument(text: str, names: list[str]) -> bool:
    """Return True if an error's text names a parameter: in backticks, with its value, or after "Expected".

    "labels" names `train_labels`.
    """
    words = set(re.findall(r"\w+", text)) if "Expected" in text else set()
    names = [*names, *(name.rpartition("_")[2] for name in names if name.endswith(("_labels", "_features")))]
    return any(f"`{name}" in text or f"{name}=" in text or name in words for name in names)


def of_the_caller(error: BaseException) -> bool:
    """Return True if a function, network or miner of PML that the call passed has raised the error."""
    frames = traceback.extract_tb(error.__traceback__)[3:]
    files = (fuzz_arguments.__file__, "nn/modules/linear.py", "nn/modules/batchnorm.py")
    own = any(frame.filename.endswith(files) for frame in frames)
    return own or any(text in str(error) for text in ("Identity", *ACCEPTED))


def described(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {str(error)[:200]!r}"


def short(given: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, torch.Tensor | np.ndarray):
            shape = "nested" if getattr(value, "is_nested", False) else tuple(value.shape)
            more = f"{getattr(value, 'device', '')} {getattr(value, 'layout', '')}"
            return f"{type(value).__name__}({value.dtype} {shape} {more})"
        with contextlib.suppress(Exception):
            return repr(value)[:80]
        return type(value).__name__

    return ", ".join(f"{name}={one(value)}" for name, value in given.items())


def fuzz(name: str, calls: int) -> tuple[str, Counter[str], float, dict[str, str]]:
    """Make the calls of one function; return the counts, the seconds and one other outcome of each kind."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    target = Target(name, exported()[name])
    counts: Counter[str] = Counter(values=0, errors=0, others=0)
    others: dict[str, str] = {}
    start = time.perf_counter()
    for number in range(calls):
        found = target.call(number)
        counts["values" if found is None else "errors" if found == "" else "others"] += 1
        if found:
            key = re.sub(r"[\d.]+", "#", found.split("\n")[0])
            others.setdefault(key, f"call {number}: {found}")
    return name, counts, time.perf_counter() - start, others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; all functions by default")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each function")
    options = parser.parse_args()
    names = [name for name in exported() if name not in LEFT_OUT]
    names = [name for name in names if not options.names or any(part in name for part in options.names)]
    total: Counter[str] = Counter()
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(len(names), len(os.sched_getaffinity(0)))) as pool:
        jobs = [pool.apply_async(fuzz, (name, options.calls)) for name in names]
        for job in jobs:
            name, counts, seconds, others = job.get()
            total += counts
            found = " ".join(f"{counts[kind]:5} {kind}" for kind in ("values", "errors", "others"))
            print(f"{name:40} {found} {seconds:7.1f} s", flush=True)
            for each in others.values():
                print(f"    {each}")
    outcomes = f"{total['values']} values, {total['errors']} errors that name an argument, {total['others']} others"
    print(f"{len(names)} functions, {sum(total.values())} calls: {outcomes}; {time.perf_counter() - start:.0f} s")
    return 1 if total["others"] else 0


if __name__ == "__main__":
    sys.exit(main())
