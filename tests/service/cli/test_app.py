from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli.app import app
from tests.support.commands import invoke
from tests.support.processes import script_environment


def test_what_cannot_be_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    Image.new("RGB", (40, 32)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a folder")
    for arguments, message in {
        ("detect", "missing.jpg"): "no such file or folder: missing.jpg",
        ("detect", str(tmp_path), "--weights", "COCO"): "no such file of weights: COCO",
        ("detect", str(tmp_path), "--weights", "bundled", "--draw", str(tmp_path / "notes.txt")): "cannot write to",
        ("serve", "--weights", "w.pth"): "no such file of weights: w.pth",
        ("evaluate", "--weights", "bundled", "--data", "nowhere"): "no such data: nowhere",
        ("train", "--data", "nowhere", "--output", "out"): "no such data: nowhere",
        ("bench", "model", "--size", "480"): "'480' is not numbers with 'x' between",
        ("weights", "pack", "w.pth", "w.frcnn"): "no such file of weights: w.pth",
        ("serve", "--calibration-images", "nowhere"): "there is no folder nowhere",
        ("evaluate", "--weights", "bundled", "--data", "a", "--calibration-images", "nowhere"): "no folder nowhere",
        ("evaluate", "--weights", "bundled", "--data", "a", "--images", "nowhere"): "there is no folder nowhere",
        ("train", "--data", "a", "--output", "out", "--images", "nowhere"): "there is no folder nowhere",
        ("train", "--data", "a", "--output", "out", "--validation-images", "nowhere"): "there is no folder nowhere",
    }.items():
        script = "import sys; sys.modules['torch'] = None\nfrom service.cli.app import main; main()"
        child = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        assert child.returncode == (1 if re.match("no such (file of weights|data)", message) else 2), arguments
        assert message in child.stderr
        assert "Traceback" not in child.stderr


def test_version_and_help() -> None:
    assert re.fullmatch(r"frcnn \d+\.\d+\.\d+\n", invoke("--version").stdout)
    commands = [[name] for name in ("serve", "detect", "train", "evaluate", "sample", "loadtest")]
    weights = [["weights", name] for name in ("list", "fetch", "inspect", "pack")]
    for command in [*commands, *weights, ["bench", "model"], ["bench", "service"]]:
        text = invoke(*command, "-h").stdout
        assert text.startswith("Usage: ")
        assert text.count("Example: frcnn") == 1, command
        assert not re.findall(r"range>|\{[a-z_]+\}", text), command


@pytest.mark.parametrize(
    ("words", "usage", "told"),
    [
        (["--nothing"], "Usage: frcnn [OPTIONS]", "No such option: --nothing"),
        (["nothing"], "Usage: frcnn [OPTIONS]", "No such command 'nothing'."),
        (["serve", "--port", "x"], "Usage: frcnn serve [OPTIONS]", "Invalid value for '--port'"),
        (["weights", "inspect"], "Usage: frcnn weights inspect [OPTIONS]", "Missing argument"),
        (
            ["bench", "model", "--size", "480"],
            "Usage: frcnn bench model [OPTIONS]",
            "Invalid value for --size: '480' is not",
        ),
    ],
)
def test_wrong_usage_shows_the_usage_and_a_message_with_the_prefix_of_all(
    words: list[str], usage: str, told: str
) -> None:
    result = CliRunner().invoke(app, words, prog_name="frcnn")
    first, *_, last = result.stderr.strip().splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert first.startswith(usage)
    assert last.startswith(f"frcnn: {told}")
    assert "Error" not in result.stderr


@pytest.mark.parametrize("words", [[], ["weights"], ["bench"]])
def test_a_group_without_a_command_shows_its_help(words: list[str]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Commands:" in result.output
    assert "frcnn: " not in result.output


def test_asking_for_help_does_not_import_torch() -> None:
    code = "import sys, service.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=script_environment(), check=False).returncode == 0


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_it_is_interrupted_without_a_trace_while_modules_are_read_that_lose_exceptions(module: str) -> None:
    """`typer` is read at the start, torch when a command needs it."""
    code = f"""
import signal, sys

class Losing:
    def find_spec(self, name, *_):
        if name == {module!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                print("lost")

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests may ignore it
sys.meta_path.insert(0, Losing())
from service.__main__ import main
main()
"""
    command = [sys.executable, "-c", code, "weights", "inspect", "bundled"]
    child = subprocess.run(command, env=script_environment(), capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "frcnn: interrupted\n")


def test_an_interruption_that_is_ignored_from_outside_stays_so() -> None:
    """As of a job in a shell's background: Ctrl-C is meant for the one in front."""
    code = """
import signal, sys

signal.signal(signal.SIGINT, signal.SIG_IGN)
from service.__main__ import main
sys.argv = ["frcnn", "--version"]
try:
    main()
finally:
    print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""
    child = subprocess.run([sys.executable, "-c", code], env=script_environment(), capture_output=True, text=True)
    assert child.stdout.endswith("True\n")


def ended(command: str) -> tuple[int, str, str]:
    """How the program ends whose command is this script's `work`: exit code, standard output and error."""
    code = f"""
import signal
from service.cli import app
from service.__main__ import main
{command}
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests may ignore it
app.main = work
main()
"""
    child = subprocess.run(
        [sys.executable, "-c", code], env=script_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return child.returncode, child.stdout, child.stderr


def test_an_interruption_between_imports_lets_a_command_clean_up() -> None:
    code = """
def work():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        print("cleaned up")
"""
    assert ended(code) == (130, "cleaned up\n", "frcnn: interrupted\n")


def test_an_interrupted_command_ends_without_freeing_what_it_has() -> None:
    """Freeing torch, OpenVINO and weights takes a second or two."""
    code = """
import atexit
from service.cli.errors import INTERRUPTED, fail

atexit.register(print, "freed")

def work():
    fail("interrupted", code=INTERRUPTED)
"""
    assert ended(code) == (130, "", "frcnn: interrupted\n")


def test_an_interruption_while_openvino_calls_python_is_not_lost() -> None:
    code = """
def work():
    try:
        reader = "openvino/frontend/pytorch/ts_decoder.py"
        exec(compile("signal.raise_signal(2)", reader, "exec"), {"signal": signal})
    except BaseException:
        print("lost")
"""
    assert ended(code) == (130, "", "frcnn: interrupted\n")


def test_an_interruption_ends_a_command_that_native_code_keeps() -> None:
    code = """
import ctypes, os, threading

def work():
    lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # waits for itself: for ever, also after a signal
"""
    assert ended(code) == (130, "", "frcnn: interrupted\n")


def test_a_command_that_handles_an_interruption_itself_has_its_time() -> None:
    code = """
import time
from service import __main__ as program

program._LONGEST_UNNOTICED_S = 0.1

def work():
    ours = signal.signal(signal.SIGINT, lambda *_: None)
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.05)
    signal.signal(signal.SIGINT, ours)  # as training does, before it says how to go on
    time.sleep(0.5)
    print("done")
"""
    assert ended(code) == (0, "done\n", "")


def test_an_interruption_in_an_import_shows_the_cursor_of_a_terminal_again() -> None:
    code = """
import signal, sys

class Interrupting:
    def find_spec(self, *_):
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
from service.__main__ import main
sys.meta_path.insert(0, Interrupting())
main()
"""
    ours, theirs = os.openpty()
    try:
        child = subprocess.run([sys.executable, "-c", code], env=script_environment(), stderr=theirs, check=False)
        assert (child.returncode, os.read(ours, 1000)) == (130, b"\x1b[?25hfrcnn: interrupted\r\n")
    finally:
        os.close(ours)
        os.close(theirs)
