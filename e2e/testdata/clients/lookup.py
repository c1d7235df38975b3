# The C library, through Python. Arguments are pairs: aaaa, a or ptr, and a name or
# an address. For each it prints a line: what it was given, with tabs between, or
# nothing.
import socket
import sys

families = {"aaaa": socket.AF_INET6, "a": socket.AF_INET}


def look(kind, name):
    try:
        if kind == "ptr":
            return [socket.getnameinfo((name, 0), socket.NI_NAMEREQD)[0]]
        return [info[4][0] for info in socket.getaddrinfo(name, None, families[kind], socket.SOCK_STREAM)]
    except socket.gaierror as err:
        if err.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return []
        raise


for kind, name in zip(sys.argv[1::2], sys.argv[2::2]):
    print("\t".join(look(kind, name)))
