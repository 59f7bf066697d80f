"""A command that torchrun or `accelerate launch` has started in several processes: one result, one exit code."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from .terminal import say

# What tells a process of the others, and would make the libraries wait for them.
_TOLD = ["RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"]
_TOLD += ["ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID"]
# How often a process that waits looks whether the first one has ended, in seconds.
_LOOK = 0.2
# How long the first process waits for the others to read its exit code, which may lie in its memory.
_READ = timedelta(seconds=30)


def several() -> bool:
    """Whether a launcher has started this process as one of several."""
    told = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return told and int(os.environ["WORLD_SIZE"]) > 1


def leave_others() -> None:
    """Go on as a process that was started alone."""
    for name in _TOLD:
        os.environ.pop(name, None)


def end_as_one(run: Callable[[], None], *, divided: bool) -> NoReturn:
    """
    Run a command in several processes, and end all of them with the exit code of the first.

    Args:
        run (`Callable`): The command. It ends with `SystemExit`.
        divided (`bool`): Whether the processes divide the work. Otherwise the first one does it, as if it were alone,
            and the others wait: all would write the same folder, and push it.
    """
    others = int(os.environ["WORLD_SIZE"]) - 1
    say(f"Waiting for the other {f'{others} processes' if others > 1 else 'process'}.", err=True)

    from torch.distributed import PrefixStore, rendezvous

    store, rank, processes = next(iter(rendezvous("env://")))
    store = PrefixStore("hf-esc", store)
    if rank > 0:
        try:
            # One that fails by itself ends at once, and the launcher ends the others.
            sys.exit((_exit_code(run) if divided else 0) or _code_of_first(store))
        finally:
            with suppress(RuntimeError):  # the first one may be gone
                store.set(f"ends {rank}", "")
    if not divided:
        leave_others()
        say(f"{processes} processes were started. The first does the work, and the others wait.", err=True)
    code = 1
    try:
        code = _exit_code(run)
    finally:
        sys.stdout.flush()  # the launcher may end this process as soon as another one has ended
        store.set("code", str(code))
    with suppress(RuntimeError):  # one of them was killed
        store.wait([f"ends {other}" for other in range(1, processes)], _READ)
    sys.exit(code)


def _exit_code(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _code_of_first(store: Any) -> int:
    # Look now and then, and do not block: Ctrl-C would not be heard.
    while not store.check(["code"]):
        time.sleep(_LOOK)
    return int(store.get("code"))
