"""Asks for a name as getent ahosts does, connects to the first address and asks for a
page, again and again, until it is ended: client.py NAME RATE LOG

LOG gets a line for each request: when it began and ended (seconds since 1970), the
address, and "ok", or what went wrong.
"""
import http.client
import signal
import socket
import sys
import threading
import time

NAME, RATE, LOG = sys.argv[1], float(sys.argv[2]), sys.argv[3]
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: over.set())
log, lock = open(LOG, "w"), threading.Lock()


def ask():
    began, address, said = time.time(), "-", "ok"
    try:
        address = socket.getaddrinfo(NAME, 80, type=socket.SOCK_STREAM)[0][4][0]
        connection = http.client.HTTPConnection(address, 80, timeout=3)
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            said = f"status {answer.status}"
    except Exception as e:
        said = f"{type(e).__name__}: {e}"
    with lock:
        log.write(f"{began:.6f} {time.time():.6f} {address} {said}\n")
        log.flush()


asking, due = [], time.time()
while not over.is_set():
    t = threading.Thread(target=ask)
    t.start()
    asking.append(t)
    due += 1 / RATE
    over.wait(max(due - time.time(), 0))
for t in asking:
    t.join()
