"""Fresh processes at little cost: each is a fork of one that has imported the libraries it needs."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Answers each request, a line of JSON, with the `answer` that its code sets and what it printed.
SERVER = """
import contextlib, gc, io, json, os, sys, traceback
IMPORTS

gc.freeze()  # or a fork copies the memory of all that is there as soon as it collects
for line in sys.stdin:
    request = json.loads(line)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        printed, names = io.StringIO(), {**globals(), **request["values"], "answer": None}
        try:
            os.chdir(request["cwd"])
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                exec(request["code"], names)
            reply = json.dumps({"answer": names["answer"], "printed": printed.getvalue()})
        except BaseException:
            reply = json.dumps({"error": traceback.format_exc()})
        with os.fdopen(write, "w") as pipe:
            pipe.write(reply)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        reply = pipe.read()
    os.waitpid(child, 0)
    print(reply, flush=True)
"""
# What hf_esc imports of other libraries, but for the Auto classes of models and what imports them (where peft is
# installed, all of the Trainer).
LIBRARIES = """
import accelerate, datasets, matplotlib.figure, safetensors.torch, sklearn.decomposition, sklearn.linear_model
import sklearn.neighbors, torch, torchvision.transforms.v2, typer
import transformers.data.data_collator, transformers.image_processing_utils, transformers.modeling_utils
import transformers.processing_utils, transformers.tokenization_utils_base
from PIL import Image
"""
Run = Callable[..., dict]


@contextmanager
def forks(imports: str, home: Path, environment: Mapping[str, str]) -> Iterator[Run]:
    """
    A function that runs code in a fork of a process with these imports.

    It takes the code, the folder to run it in, and values by keyword, and returns `answer`, which the code may set,
    and what it `printed`.
    """
    with (home / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER.replace("IMPORTS", imports)],
            cwd=home,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def run(code: str, cwd: Path = home, /, **values) -> dict:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        process.stdin.write(json.dumps({"code": textwrap.dedent(code), "cwd": str(cwd), "values": values}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, (home / "stderr").read_text()[-3000:]
        reply = json.loads(line)
        assert "error" not in reply, reply["error"][-3000:]
        return reply

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait(30)


# Where hf_esc cannot be imported, and code that travels is kept in the working directory.
WITHOUT_HF_ESC = """
import os, sys
import transformers.dynamic_module_utils
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_esc":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
transformers.dynamic_module_utils.HF_MODULES_CACHE = os.path.abspath("modules")
trusted = {"trust_remote_code": True}
"""
# The command line of the package in `root`, with `arguments`.
COMMAND = """
import os
sys.path.insert(0, root)
os.environ["COLUMNS"] = "200"
from hf_esc.cli import main
sys.argv = ["hf-esc", *arguments]
try:
    main()
except SystemExit as ended:
    assert not ended.code, sys.stderr.getvalue()[-3000:]
answer = sys.modules["hf_esc"].__file__
"""


def outside(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that finds nothing of this checkout by its path."""
    return {name: value for name, value in environment.items() if name != "PYTHONPATH"}
