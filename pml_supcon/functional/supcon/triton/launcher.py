"""The test that Triton can launch kernels in this process: it needs a driver, and a C compiler for its launcher."""

import os
import re
import shutil
import subprocess
import sysconfig
import warnings
from functools import lru_cache


def refusal(*, warn: bool) -> str | None:
    """Return the reason why Triton cannot launch kernels in this process, or None; can warn, once a process."""
    reason = fault()
    if reason is not None and warn:
        warn_of(reason)
    return reason


# the compiler takes the answer and does not trace the question: `torch.compiler.assume_constant_result`, which would
# import the compiler
vars(refusal)["_dynamo_marked_constant"] = True


@lru_cache(maxsize=1)
def fault() -> str | None:
    """Let Triton load its driver, and before Triton 3.8 compile a line of C: its launchers are built at first use."""
    try:
        from triton.backends.nvidia import driver
        from triton.runtime import driver as runtime

        runtime.active.get_current_target()
        return compiler_fault() if hasattr(driver, "make_launcher") else None
    except Exception as error:
        text = re.sub(r"\s+", " ", str(error)).strip()
        return f"Triton cannot start here ({type(error).__name__}: {text[:200]})"


def compiler_fault() -> str | None:
    """Return the reason why Triton cannot compile its launchers, or None: it needs a C compiler and Python.h."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "Triton needs a C compiler, and finds neither gcc nor clang, nor the variable CC"
    headers = sysconfig.get_path("include", "posix_prefix")
    command = [compiler, "-fsyntax-only", f"-I{headers}", "-x", "c", "-"]
    try:
        done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True, check=False)
    except OSError as error:
        return f"Triton needs a C compiler, and {compiler} does not start ({error.strerror})"
    return None if done.returncode == 0 else f"Triton needs Python.h, and {compiler} finds none in {headers}"


@lru_cache(maxsize=1)
def warn_of(reason: str) -> None:
    """Warn that another backend computes the losses."""
    warnings.warn(
        f"The backend 'triton' cannot run here: {reason}. The losses are computed by 'tiled', which is slower",
        stacklevel=2,
    )
