"""A machine's server that works as a file says: server.py MODE LOG PORT

MODE is read for every page: "ok", or "broken" (/healthz is a 500), "closed" (nothing
listens), "flap" (/healthz is fine four times, then a 500 three times, and so on),
"pulse" (the same with sixteen times: it is believed again whatever it did before),
"slow" (/healthz is fine and takes 700 ms).
LOG gets the code of every answer for /healthz. Other pages take 50 ms and say
WEFT_NAME.
"""
import http.server
import os
import socket
import sys
import time

MODE, LOG, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
FINE = {"flap": 4, "pulse": 16}
turn = 0


def mode():
    try:
        with open(MODE) as f:
            return f.read().strip()
    except FileNotFoundError:
        return "closed"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global turn
        code, is_now = 200, mode()
        if self.path == "/healthz":
            if is_now in FINE:
                code = 200 if turn % (FINE[is_now] + 3) < FINE[is_now] else 500
                turn += 1
            elif is_now == "slow":
                time.sleep(0.7)
            elif is_now != "ok":
                code = 500
            with open(LOG, "a") as f:
                f.write(f"{code}\n")
        else:
            time.sleep(0.05)
        body = os.environ.get("WEFT_NAME", "").encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
    daemon_threads = True
    timeout = 0.02

    def handle_error(self, request, client_address):
        pass  # who asked has gone


server = None
while True:
    closed = mode() == "closed"
    if closed and server:
        server.server_close()
        server = None
    elif not closed and not server:
        server = Server(("::", PORT), Page)
    if server:
        server.handle_request()
    else:
        time.sleep(0.02)
