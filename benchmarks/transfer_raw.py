"""The same bytes by the MQTT library alone: what a transfer costs before it promises anything.

    python -m benchmarks.transfer_raw {sender,receiver} --port P --file F --size N --chunk-kib K --window W

The sender reads the file and publishes its chunks at QoS 1, the receiver counts bytes and drops them: no disk, no hash,
no request, no acknowledgement beyond the broker's. The protocol on standard input and output is `transfer_sides`'s.
"""

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from benchmarks.transfer_sides import growth, say

_TOPIC = "raw/chunks"
_GO = "raw/go"


def connect(name: str, port: int, window: int) -> tuple[paho.Client, threading.Event]:
    """A client with its loop running, and what is set when it is connected."""
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(window)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client, connected


def subscribe(client: paho.Client, topic: str) -> None:
    """Subscribe, and wait until the broker has granted it: what is published earlier is lost."""
    granted = threading.Event()
    client.on_subscribe = lambda *_: granted.set()
    client.subscribe(topic, 1)
    granted.wait()


def send(port: int, path: Path, size: int, chunk_bytes: int, window: int) -> None:
    """Publish the file's first bytes when the receiver says go, at most `window` chunks unacknowledged."""
    client, connected = connect("raw-sender", port, window)
    connected.wait()
    go, room = threading.Event(), threading.Semaphore(window)
    client.on_message = lambda *_: go.set()
    client.on_publish = lambda *_: room.release()
    subscribe(client, _GO)
    say({"ready": True})
    go.wait()
    with path.open("rb", buffering=0) as file:
        for left in range(size, 0, -chunk_bytes):
            room.acquire()
            client.publish(_TOPIC, file.read(min(chunk_bytes, left)), qos=1)
    sys.stdin.readline()
    client.disconnect()
    client.loop_stop()


def receive(port: int, size: int, window: int) -> dict[str, object]:
    """Count the bytes from the go to the last chunk."""
    client, connected = connect("raw-receiver", port, window)
    connected.wait()
    came, whole = [0], threading.Event()

    def on_message(_client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        came[0] += len(message.payload)
        if came[0] >= size:
            whole.set()

    client.on_message = on_message
    subscribe(client, _TOPIC)
    say({"ready": True})
    sys.stdin.readline()
    begin = time.monotonic()
    client.publish(_GO, b"go", qos=1)
    whole.wait()
    seconds = time.monotonic() - begin
    say({"arrived": True})
    sys.stdin.readline()
    client.disconnect()
    client.loop_stop()
    return {"seconds": seconds}


def main() -> None:
    """Run one side to its end."""
    parser = argparse.ArgumentParser(description="one side of a raw transfer")
    parser.add_argument("role", choices=("sender", "receiver"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--chunk-kib", type=int, required=True)
    parser.add_argument("--window", type=int, required=True)
    given = parser.parse_args()
    figures: dict[str, object] = {}
    with growth() as grown:
        if given.role == "sender":
            send(given.port, given.file, given.size, given.chunk_kib * 1024, given.window)
        else:
            figures = receive(given.port, given.size, given.window)
    say(figures | grown)


if __name__ == "__main__":
    main()
