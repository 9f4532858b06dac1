"""A session makes its TLS context anew for each connection: renewed certificates are used, broken ones waited out."""

import ssl
import threading

from fedpipe_wire.certificates import CertificateError
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.transport import Disconnected


def test_a_certificate_that_cannot_be_read_is_told_and_tried_again() -> None:
    asked, again = list[int](), threading.Event()

    def context() -> ssl.SSLContext:
        asked.append(1)
        if len(asked) == 3:
            again.set()
        raise CertificateError("cannot log in with login.crt")

    options = MqttOptions(backoff_min_s=0.01, backoff_max_s=0.02)
    transport = MqttTransport("127.0.0.1", 1, "one", tls=context, options=options)
    transport.start()
    assert again.wait(30)
    event = transport.events.get(timeout=30)
    transport.stop()
    assert isinstance(event, Disconnected)
    assert not event.final
    assert "cannot log in with login.crt" in event.reason
