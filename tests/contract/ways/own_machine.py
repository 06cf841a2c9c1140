"""Runs a command on a machine within this one: own_machine.py HOSTS_FILE ADDRESS COMMAND...

To be started by `unshare --map-root-user --mount --net`. The machine has a loopback of its own, on which every port is
free, a further address, no other network, and the given hosts file; the one around it notices nothing.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys

# from Linux, include/uapi/linux/sockios.h and if.h
SET_FLAGS = 0x8914
SET_ADDRESS = 0x8916
UP_AND_RUNNING = 0x1 | 0x40

with socket.socket() as asking:
    fcntl.ioctl(asking, SET_FLAGS, struct.pack("16sh", b"lo", UP_AND_RUNNING))
    address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(sys.argv[2]))
    fcntl.ioctl(asking, SET_ADDRESS, struct.pack("16s16s", b"lo:0", address))
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/hosts"], check=True)
os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 -- the command is that of the test
