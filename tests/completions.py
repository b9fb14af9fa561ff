"""A fake server of OpenAI's completions protocol, on a local port.

with served(StandIn(lambda body: (200, completion(token_ids=[1, 2], finish_reason="stop")))) as url:
    ...
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """A server of completions. `answer(body)` returns the status and the payload, a JSON value or bytes."""

    def __init__(self, answer):
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.num_at_once = self.most_at_once = 0
        self.answer = answer
        self.lock = threading.Lock()


def completion(**choice):
    """Return a response with one choice."""
    return {"object": "text_completion", "choices": [{"index": 0, "text": "", **choice}]}


@contextmanager
def served(stand_in):
    """Run a server and yield its URL. The server records the bodies of requests and how many it had at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"object": "list", "data": [{"id": "spoken", "object": "model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path in ("/v1/completions", "/v1/chat/completions")
            with stand_in.lock:
                stand_in.bodies.append(body)
                stand_in.headers.append(dict(self.headers))
                stand_in.num_at_once += 1
                stand_in.most_at_once = max(stand_in.most_at_once, stand_in.num_at_once)
            try:
                answer = stand_in.answer(body)
            finally:  # before the reply, after which the client may send its next request
                with stand_in.lock:
                    stand_in.num_at_once -= 1
            self.reply(*answer)

        def reply(self, status, payload):
            content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # of clients that have closed the connection
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
