"""Commands answered by processes that are forked from one which has imported what takes long.

A command on the path is a few lines that hand its arguments, folder, environment and streams to the server and end with
the status that comes back.
"""

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
LARGEST = 1 << 17  # bytes of a request; an environment is a few thousand
#: Of all commands: nothing is shown, nothing downloaded.
ON_THE_CPU = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

#: A stand-in on the path: no site packages, so that it starts in a hundredth of a second.
PROGRAM = """#!{python} -ESs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = dict(name={name!r}, arguments=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
sys.exit(int(server.recv(16) or b"1"))
"""


class Server:
    """The server, as its tests see it.

    Args:
        folder: an empty folder for the socket, and for `bin` with a program for each name.
        module: with `COMMANDS`, functions by name; it imports what takes long.
        names: of the commands that get a program.
    """

    def __init__(self, folder, module, names=()):
        self.address = str(folder / "socket")
        (folder / "bin").mkdir(parents=True)
        for name in names:
            program = folder / "bin" / name
            program.write_text(PROGRAM.format(python=sys.executable, address=self.address, name=name))
            program.chmod(0o755)
        self.bin = folder / "bin"
        environment = {**os.environ, **ON_THE_CPU, "PYTHONPATH": str(HERE.parent)}  # the helpers of all tests
        command = [sys.executable, str(HERE / "command_server.py"), self.address, module]
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)

    def run(self, name, arguments, folder, *, environment, output, seconds=480):
        """Run a command in a folder and write to a file what it says; its exit status."""
        request = {"name": name, "arguments": list(map(str, arguments)), "folder": str(folder)}
        request["environment"] = environment
        with self._connect() as server, open(os.devnull) as nothing, output.open("wb") as said:
            server.settimeout(seconds)
            numbers = [nothing.fileno(), said.fileno(), said.fileno()]
            socket.send_fds(server, [json.dumps(request).encode()], numbers)
            return int(server.recv(16) or b"1")

    def _connect(self):
        while self.process.poll() is None:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                server.connect(self.address)
                return server
            except OSError:  # it is still importing
                server.close()
                time.sleep(0.05)
        raise RuntimeError(f"Expected the server of commands to run, but it ended with {self.process.returncode}")

    def close(self):
        """End the server, and what still runs."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve(address, commands):
    """Answer requests, each in a process of its own, for as long as the tests are there."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    gc.freeze()  # what was imported is no garbage: collections in the forked processes need not look at it
    tests = os.getppid()
    listening.settimeout(5)
    while os.getppid() == tests:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection, commands)
        connection.close()


def _answer(connection, commands):
    request, numbers, _, _ = socket.recv_fds(connection, LARGEST, 3)
    for number, stream in enumerate(numbers):
        os.dup2(stream, number)
    asked = json.loads(request)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    status = status_of(commands[asked["name"]], asked["arguments"])
    connection.send(str(status).encode())
    os._exit(0)


def status_of(command, *arguments):
    """The exit status that a shell would see of a Python function."""
    try:
        command(*arguments)
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(sys.argv[1], importlib.import_module(sys.argv[2]).COMMANDS)
