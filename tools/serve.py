"""Serve an exported web page: `python tools/serve.py best_web`; for a phone's camera `--https`.

Browsers give a page the camera only over https, or on the computer that serves it. `--https` makes a certificate for
this computer's address in the local network, which the phone has to be told to accept, and serves to that network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Bounds, Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class ServeConfig(Config):
    """Serve a folder, such as the web page of a model, on this computer or to the local network.

    Example: runs/train/exp/weights/best_web --https
    """

    folder: str = argument("folder to serve, with an index.html")
    https: bool = flag(False, "serve over https to the local network, so that a phone's camera works", group="network")
    port: int = flag(8000, "port", bounds=Bounds(low=0, high=65535))


if __name__ == "__main__":
    check_cli(ServeConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import shutil
import socket
import ssl
import subprocess
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

LOGGER = logging.getLogger(__name__)
DAYS = 30  # that a certificate is valid


class PageHandler(SimpleHTTPRequestHandler):
    """Serves files with the headers that let a page use several threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


def lan_address() -> str:
    """The address of this computer in its network; 127.0.0.1 without one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; of UDP, this only chooses a network card
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def make_certificate(address: str, folder: Path) -> Path:
    """A file with a new key and a certificate for `address`, made by openssl.

    Raises:
        FileNotFoundError, ValueError: no openssl; it failed.
    """
    if not shutil.which("openssl"):
        raise FileNotFoundError("--https needs the program openssl, which was not found: install it")
    path = folder / "certificate.pem"
    names = f"subjectAltName=IP:{address},DNS:localhost"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(DAYS), "-subj", "/CN=localhost"]
    result = subprocess.run(
        [*words, "-addext", names, "-keyout", str(path), "-out", str(folder / "public.pem")],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise ValueError(f"--https: openssl failed: {' '.join(result.stderr.split())[-200:]}")
    path.write_text(path.read_text() + (folder / "public.pem").read_text())
    return path


def make_server(cfg: ServeConfig) -> ThreadingHTTPServer:
    """The server, which has a port but answers nothing yet.

    Raises:
        FileNotFoundError, OSError, ValueError: no such folder; the port is in use; see make_certificate.
    """
    if not Path(cfg.folder, "index.html").is_file():
        raise FileNotFoundError(f"{cfg.folder}: no index.html, expected the folder of a page, such as best_web")
    handler = partial(PageHandler, directory=cfg.folder)
    server = ThreadingHTTPServer(("" if cfg.https else "127.0.0.1", cfg.port), handler)
    if cfg.https:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            context.load_cert_chain(make_certificate(lan_address(), Path(folder)))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def main(cfg: ServeConfig) -> None:
    """Serve until Ctrl-C."""
    with make_server(cfg) as server:
        port = server.server_address[1]
        if cfg.https:
            LOGGER.info(f"on a phone in the same network: https://{lan_address()}:{port}")
            LOGGER.info("the browser warns of a certificate that nobody vouches for: choose to go on. Ctrl-C ends.")
        else:
            LOGGER.info(f"open http://localhost:{port}; Ctrl-C ends; for a phone's camera: --https")
        server.serve_forever()


if __name__ == "__main__":
    run_script(main, ServeConfig)
