"""OpenStack Swift with its S3 interface on loopback: a real object store for tests, on one folder, with one replica.

    SWIFT_PYTHON swift_server.py FOLDER PORT

SWIFT_PYTHON is a Python that has the package `swift`. PORT and the three above it are used. The servers run until
standard input closes or a signal comes; the access key is `test:tester`, the secret SECRET.
"""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
SECRET = "secret-of-these-tests"
STORAGE = ("account", "container", "object")
SERVERS = ("proxy", *STORAGE)
FILTERS = {
    "catch_errors": {},
    "gatekeeper": {},
    "healthcheck": {},
    "listing_formats": {},
    "bulk": {},
    "s3api": {"location": "us-east-1", "max_bucket_listing": 10},  # small pages, so that listings have several
    "tempauth": {"user_test_tester": f"{SECRET} .admin"},
    "copy": {},
    "slo": {},
    "dlo": {},
}
"""What a request passes on its way to the proxy, with the options of each; slo carries multipart uploads."""


def configuration(sections: dict[str, dict[str, Any]]) -> str:
    """The text of an ini file."""
    lines = []
    for name, options in sections.items():
        lines += [f"[{name}]", *(f"{key} = {value}" for key, value in options.items()), ""]
    return "\n".join(lines)


def write_settings(folder: Path, port: int) -> None:
    """All that the four servers read: their settings, and where each ring's single device is."""
    common = {
        "bind_ip": HOST,
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "swift_dir": folder,
        "workers": 0,
        "log_level": "WARNING",
        "log_address": folder / "no-syslog",
    }
    hashing = {"swift_hash_path_prefix": "tests", "swift_hash_path_suffix": "tests"}
    policy = {"name": "one-copy", "default": "yes"}
    (folder / "swift.conf").write_text(configuration({"swift-hash": hashing, "storage-policy:0": policy}))
    for number, server in enumerate(STORAGE, 1):
        here = common | {"bind_port": port + number, "devices": folder / "devices", "mount_check": "false"}
        app = {"use": f"egg:swift#{server}", "fallocate_reserve": 0}
        pipeline = {"pipeline": f"{server}-server"}
        sections = {"DEFAULT": here, "pipeline:main": pipeline, f"app:{server}-server": app}
        (folder / f"{server}.conf").write_text(configuration(sections))
    app = {"use": "egg:swift#proxy", "account_autocreate": "true", "allow_account_management": "true"}
    sections = {
        "DEFAULT": common | {"bind_port": port},
        "pipeline:main": {"pipeline": " ".join([*FILTERS, "proxy-server"])},
        **{f"filter:{name}": {"use": f"egg:swift#{name}", **options} for name, options in FILTERS.items()},
        "app:proxy-server": app,
    }
    (folder / "proxy.conf").write_text(configuration(sections))


def build_rings(folder: Path, port: int) -> None:
    """Rings that put everything on the one device."""
    from swift.common.ring import RingBuilder

    for number, server in enumerate(STORAGE, 1):
        address = {"ip": HOST, "port": port + number}
        replication = {f"replication_{key}": value for key, value in address.items()}
        device = {"id": 0, "region": 1, "zone": 1, "device": "disk", "weight": 1.0, **address, **replication}
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        builder.add_dev(device)
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{server}.ring.gz"))


def serve(server: str, folder: Path) -> int:
    """Be one of the four servers."""
    from swift.common import utils

    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")  # not the machine's own
    from swift.common.wsgi import run_wsgi

    return run_wsgi(str(folder / f"{server}.conf"), f"{server}-server")


def main(folder: Path, port: int) -> None:
    """Start the servers, and end them when the parent does."""
    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    write_settings(folder, port)
    build_rings(folder, port)
    command = [sys.executable, __file__, str(folder), str(port)]
    servers = [subprocess.Popen([*command, name], stdin=subprocess.DEVNULL) for name in SERVERS]
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        sys.stdin.read()
    finally:
        for process in servers:
            process.terminate()
        for process in servers:
            process.wait()


if __name__ == "__main__":
    place, first_port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    if len(sys.argv) > 3:
        sys.exit(serve(sys.argv[3], place))
    main(place, first_port)
