"""The Python programs that the tests of engines run in sandboxes. They tell what they see by printing lines."""

FOREVER = "\nimport time\nwhile True: time.sleep(3600)"

COUNTER = """
import os, time
number = 0
file = os.open("/tmp/count", os.O_RDWR | os.O_CREAT, 0o644)
os.pwrite(file, b"%09d" % number, 0)
while True:
    with open("/tmp/count", "rb") as other:
        if not os.pread(file, 9, 0) == other.read() == b"%09d" % number:
            print("differs", flush=True)
            raise SystemExit(1)
    number += 1
    os.pwrite(file, b"%09d" % number, 0)
    if number % 20 == 0:
        print(number, flush=True)
    time.sleep(0.0005)
"""
"""Counts in its memory and in a file, and ends when the two are not the same."""

SEEN = """
import json, os, sys
seen = {}
status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
seen["ids"] = [os.getresuid(), os.getresgid(), os.getgroups()]
seen["capabilities"] = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd") if name in status}
seen["pid"] = os.getpid()
seen["processes"] = [int(name) for name in os.listdir("/proc") if name.isdigit()]
seen["hostname"] = os.uname().nodename
seen["environment"] = open("/proc/self/environ").read()
seen["cwd"] = os.getcwd()
seen["input"] = sys.stdin.read()
seen["descriptors"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))
seen["root"] = sorted(os.listdir("/"))
seen["refused"] = {}
for path in ("/new", "/etc/passwd", "/usr/new", "/proc/sys/kernel/core_pattern"):
    try:
        open(path, "w").close()
        seen["refused"][path] = 0
    except OSError as error:
        seen["refused"][path] = error.errno
for path in ("/tmp/new", "/run/new", "/talk/new", "/dev/shm/new", "/dev/null"):
    try:
        open(path, "w").close()
    except OSError as error:
        seen["refused"][path] = error.errno
seen["random"] = len(open("/dev/urandom", "rb").read(7))
print(json.dumps(seen), flush=True)
"""

SERVER = """
import socket
listening = socket.create_server(("0.0.0.0", 8080))
print("ready", flush=True)
count = 0
while True:
    connection, _ = listening.accept()
    count += 1
    connection.sendall(b"answer %d" % count)
    connection.close()
    del connection
"""

CLIENT = """
import socket, time
connection = socket.create_connection((HOST, PORT))
print("connected", flush=True)
while True:
    time.sleep(0.01)
    print("still", flush=True)
"""

MAPPED = """
import mmap, os, time
file = open("/data/file", "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.chmod("/data/other", 0o640)
print("ready", flush=True)
while not os.path.exists("/talk/go"): time.sleep(0.005)
print(mapped[:7].decode(), file.read(7).decode(), open("/data/other").read(5), oct(os.stat("/data/other").st_mode))
"""
"""Has a file of its root mapped, and gives another one another mode."""
