#!/usr/bin/env python3
"""Many clients at once against a served scorer on loopback: errors, times, requests a second, memory.

python tests/benchmarks/serving.py --clients 50 --seconds 60

Each client asks for the similarity of two pictures, one request after the other, over a connection of its own. Clients
and server share the machine, so times include the waiting for a core.
"""

import argparse
import asyncio
import io
import socket
import time

import aiohttp
import numpy as np
import psutil
from PIL import Image

from nearid_ray.cluster import ray_session
from nearid_ray.scoring.serve import app

MIB = 2**20


def picture(seed: int, side: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def served() -> dict[str, float]:
    """Resident MiB of the replicas and the proxy."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline()[:1])
            for name in ("ServeReplica", "ProxyActor"):
                if name in title:
                    found[name] = found.get(name, 0.0) + process.memory_info().rss / MIB
        except psutil.Error:
            continue
    return found


async def client(
    url: str, pictures: list[bytes], seed: int, until: float, times: list[float], errors: list[str]
) -> None:
    draw = np.random.default_rng(seed)
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until:
            form = aiohttp.FormData()
            for name in "ab":
                form.add_field(name, pictures[draw.integers(len(pictures))], filename="x.jpg")
            began = time.monotonic()
            try:
                async with session.post(url, data=form) as answer:
                    body = await answer.json()
                    if answer.status != 200 or not -1 <= body["similarity"] <= 1:
                        errors.append(f"{answer.status}: {body}")
            except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
                errors.append(repr(error))
            times.append(time.monotonic() - began)


async def load(url: str, clients: int, seconds: float, pictures: list[bytes]) -> None:
    times: list[float] = []
    errors: list[str] = []
    began = time.monotonic()
    running = [
        asyncio.create_task(client(url, pictures, seed, began + seconds, times, errors)) for seed in range(clients)
    ]
    print(f"{'second':>7} {'requests':>9}  resident MiB")
    while time.monotonic() < began + seconds:
        await asyncio.sleep(min(10.0, seconds / 4))
        print(f"{time.monotonic() - began:>7.0f} {len(times):>9}  { ({k: round(v) for k, v in served().items()}) }")
    await asyncio.gather(*running)
    taken = time.monotonic() - began
    p50, p99 = np.percentile(np.array(times) * 1000, [50, 99])
    print(
        f"{clients} clients, {taken:.0f} s: {len(times)} requests, {len(errors)} errors, {len(times) / taken:.0f} "
        f"requests a second, p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {max(times) * 1000:.0f} ms"
    )
    for error in errors[:3]:
        print("error:", error)


def main() -> None:
    from ray import serve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", default="toybox-siglip2")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--side", type=int, default=256, help="of the pictures, pixels")
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ray_session(num_cpus=4):
        serve.start(http_options={"port": port})
        serve.run(app({"scorer": given.scorer}), route_prefix="/", logging_config={"enable_access_log": False})
        try:
            pictures = [picture(seed, given.side) for seed in range(64)]
            url = f"http://127.0.0.1:{port}/similarity"
            asyncio.run(load(url, given.clients, given.seconds, pictures))
        finally:
            serve.shutdown()


if __name__ == "__main__":
    main()
