"""An S3 server on loopback with one bucket, `checkpoints`, until its standard input ends. Prints its port."""

import logging
import sys
import urllib.request

from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
bucket = urllib.request.Request(f"http://127.0.0.1:{port}/checkpoints", method="PUT")
urllib.request.urlopen(bucket, timeout=30).close()
print(port, flush=True)
sys.stdin.read()
server.stop()
