"""
The process that `faults.py` runs everything in: it has imported what commands need, and forks a child for each job.

It reads a line of JSON for each request, `{"jobs": [...]}`, starts the jobs side by side, and answers with a line that
says of each how it ended. It computes nothing itself, so that no lock is held at a fork.
"""

import contextlib
import hashlib
import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

# Files are written through Python, which tells of each step, and by safetensors, which does not.
_STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
# What a full disk still does.
_FREES = {"os.rename", "os.remove", "os.rmdir"}


class Hook:
    """
    Counts the steps of writing below a folder, and lets something happen at one of them.

    Args:
        root (`str`): The folder.
        at (`int`): The step, from 0.
        action (`str`): `count`; `kill` or `interrupt`, just before the step; `error`, which fails the step alone;
            `full`, which fails it and all after it that need space.
    """

    def __init__(self, root: str, at: int, action: str):
        self.root, self.at, self.action = root, at, action
        self.count = 0
        self.where = ""
        self.on = True
        sys.addaudithook(self._audit)
        self._patch_safetensors()

    def step(self, what: str, path: str, half: str | None = None) -> None:
        number, self.count = self.count, self.count + 1
        if number == self.at and self.action != "count":
            self.where = f"{what} {os.path.relpath(path, self.root)}"
        if self.action == "full" and number >= self.at and what not in _FREES:
            raise OSError(28, os.strerror(28), path)
        if number != self.at:
            return
        if self.action in ("kill", "interrupt"):
            self.on = False
            if half is not None:  # as safetensors leaves it: half of a file under a name of its own
                os.truncate(path, os.path.getsize(path) // 2)
                os.rename(path, half)
            os.write(2, f"AT {self.where}\n".encode())
            self.on = True
            os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGINT)
        if self.action == "error":
            raise OSError(5, os.strerror(5), path)

    def _audit(self, event: str, args: tuple) -> None:
        if not self.on or (event != "open" and event not in _STEPS):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = args[0] if not isinstance(args[0], int) else self.root
        path = os.path.join(os.getcwd(), os.fsdecode(path))
        # A name without a folder is one below an open folder, as `shutil.rmtree` goes through it.
        inside = not os.path.isabs(os.fsdecode(args[0])) if not isinstance(args[0], int) else False
        if path.startswith(self.root + os.sep) or (inside and event in ("os.remove", "os.rmdir")):
            self.step(event, path)

    def _patch_safetensors(self) -> None:
        import safetensors.torch
        from safetensors import SafetensorError

        real = safetensors.torch.serialize_file

        def serialize_file(tensors, filename, *args, **kwargs):
            path = os.path.abspath(filename)
            if not path.startswith(self.root + os.sep):
                return real(tensors, filename, *args, **kwargs)
            try:
                self.step("save", path)
                result = real(tensors, filename, *args, **kwargs)
                self.step("saved", path, half=os.path.join(os.path.dirname(path), ".tmpHALF"))
            except OSError as error:
                raise SafetensorError(f"Error while serializing: I/O error: {error.strerror}") from None
            return result

        safetensors.torch.serialize_file = serialize_file


def _let_interrupts(come: bool) -> None:
    """An interruption of the harness itself says nothing: it waits until the command runs."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK if come else signal.SIG_BLOCK, {signal.SIGINT})


def command(job: dict) -> int:
    """`hf-esc` with its words, as its process would end."""
    import hf_esc.cli

    sys.argv = ["hf-esc", *job["words"]]
    try:
        _let_interrupts(True)
    except KeyboardInterrupt:
        return 130  # it came before the command could do anything about it
    try:
        try:
            hf_esc.cli.main()
        finally:
            _let_interrupts(False)
        return 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        return 130 if isinstance(error, KeyboardInterrupt) else 1


def damage(job: dict) -> int:
    """Look at damaged folders, one after the other; a line for each."""
    from faults_damage import apply
    from faults_look import look

    for case in job["cases"]:
        folder = Path(job["tmp"]) / "damaged"
        apply(case, Path(job["folders"]), folder)
        print(json.dumps(look(folder, job["images"], job["forget"])), flush=True)
    return 0


def look(job: dict) -> int:
    """Look at one folder."""
    from faults_look import look as look_at

    print(json.dumps(look_at(Path(job["folder"]), job["images"], job["forget"])), flush=True)
    return 0


def restore(job: dict) -> int:
    """What the next run does first with a folder in which one was killed."""
    from hf_esc.saving import check_output, restore_into

    restore_into(Path(job["folder"]))
    check_output(Path(job["folder"]), overwrite=True)
    return 0


def make(job: dict) -> int:
    """Parts of the embedded images as parquet files, the images that are looked at, and an old model's folder."""
    from faults_look import make_data

    make_data(Path(job["folder"]), job["train"], job["test"])
    return 0


JOBS = {"command": command, "damage": damage, "look": look, "restore": restore, "make": make}


def child(job: dict, out: int, err: int) -> None:
    """Does a job in a fork, and ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_interrupts(False)
    os.dup2(os.open(job["stdout"], os.O_WRONLY) if job.get("stdout") else out, 1)
    os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["tmp"])
    tempfile.tempdir = job["tmp"]
    time.sleep(job.get("delay", 0))
    if job.get("fresh"):  # an interpreter of its own
        _let_interrupts(True)
        os.environ["TMPDIR"] = job["tmp"]
        os.execv(sys.executable, [sys.executable, "-m", "hf_esc.cli", *job["words"]])
    import datasets

    datasets.config.HF_DATASETS_CACHE = job["cache"]
    if "file_size" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
    hook = Hook(**job["hook"]) if "hook" in job else None
    started = set(sys.modules)
    code = JOBS[job["do"]](job)
    if "modules" in job:
        Path(job["modules"]).write_text(json.dumps([name for name in sys.modules if name not in started]))
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored on flushing sys.stdout: {error}", file=sys.stderr)
        code = 120
    if hook is not None:
        hook.on = False
        print(f"\nSTEPS {hook.count} {hook.where}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


class Running:
    """A child: what it says, and when it is to be killed."""

    def __init__(self, job: dict, selector: selectors.BaseSelector):
        ends = [os.pipe(), os.pipe()]
        self.started = time.monotonic()
        self.code: int | None = None
        self.signal: int | None = None
        self.kill_at = self.started + job["kill_after"] if "kill_after" in job else None
        self.kill_with = job.get("signal", signal.SIGKILL)
        self.deadline = self.started + job.get("limit", 120)
        self.late = False
        self.said: list[bytes] = [b"", b""]
        if (pid := os.fork()) == 0:
            try:
                child(job, ends[0][1], ends[1][1])
            finally:
                traceback.print_exc()
                os._exit(70)
        self.pid = pid
        for index, (read, write) in enumerate(ends):
            os.close(write)
            os.set_blocking(read, False)
            selector.register(read, selectors.EVENT_READ, (self, index))

    def tend(self) -> None:
        """Kill what is to be killed, and note what has ended."""
        now = time.monotonic()
        if self.kill_at is not None and now >= self.kill_at:
            os.kill(self.pid, self.kill_with)
            self.kill_at = None
        if now >= self.deadline:
            self.late = True
            os.kill(self.pid, signal.SIGKILL)
            self.deadline = float("inf")
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.seconds = now - self.started
            self.ended = time.time()
            self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None

    @property
    def over(self) -> bool:
        return self.code is not None or self.signal is not None

    def reply(self) -> dict:
        out, err = (said.decode(errors="replace") for said in self.said)
        times = {"seconds": round(self.seconds, 3), "ended": self.ended, "late": self.late}
        return {"code": self.code, "signal": self.signal, "out": out, "err": err, **times}


def answer(jobs: list[dict]) -> list[dict]:
    """Run jobs side by side."""
    with selectors.DefaultSelector() as selector:
        running = [Running(job, selector) for job in jobs]

        def drain(wait: float) -> None:
            for key, _ in selector.select(wait):
                owner, index = key.data
                if data := os.read(key.fd, 65536):
                    owner.said[index] += data
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)

        while not all(one.over for one in running):
            if selector.get_map():
                drain(0.002)
            else:
                time.sleep(0.002)
            for one in running:
                if not one.over:
                    one.tend()
        until = time.monotonic() + 5  # something that a child has started may hold its pipes
        while selector.get_map() and time.monotonic() < until:
            drain(0.1)
        for key in list(selector.get_map().values()):
            os.close(key.fd)
    return [one.reply() for one in running]


def source_sha256() -> str:
    """Of all files of the package that runs."""
    import hf_esc

    digest = hashlib.sha256()
    for file in sorted(Path(hf_esc.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import datasets
    import evaluate  # noqa: F401
    import torch
    import transformers
    from safetensors import SafetensorError  # noqa: F401

    import hf_esc.cli.measure
    import hf_esc.cli.report
    import hf_esc.cli.runners
    import hf_esc.cli.training
    import hf_esc.evaluation.report
    import hf_esc.evaluation.unlearning
    import hf_esc.hub.push
    import hf_esc.loading
    from hf_esc.methods import METHODS

    assert hf_esc.verify  # a name of the face is imported when it is first used
    for method in METHODS.values():
        method.load()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    root = Path(__file__).parents[1]
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=root
    )
    versions = {"hf_esc": hf_esc.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    versions |= {"python": sys.version.split()[0], "revision": revision.stdout.strip(), "source": source_sha256()}
    print(json.dumps(versions), file=protocol, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        for name in request.get("import", ()):  # what children have imported, so that those to come need not
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        print(json.dumps(answer(request["jobs"])), file=protocol, flush=True)


if __name__ == "__main__":
    main()
