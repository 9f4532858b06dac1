"""`fedpipe-agent run`: measure this machine, connect, and work until asked to stop."""

import signal
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_agent.checks import Setup
from fedpipe_agent.config import load_agent_settings, within_hours
from fedpipe_agent.daemon import Daemon
from fedpipe_agent.identity import Identity
from fedpipe_agent.preflight import check
from fedpipe_agent.probe import probe_device
from fedpipe_agent.state_folder import StateFolder
from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.topics import Topics


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="The agent's settings.")] = Path("agent.toml"),
) -> None:
    """Run the agent in the foreground, until Ctrl-C or SIGTERM.

    Example: fedpipe-agent run --config /etc/fedpipe/agent.toml
    """
    settings = load_agent_settings(config)
    check(settings)
    with StateFolder(settings.state) as folder:
        _log(f"agent {settings.name}: measuring this machine")
        profile, notes = probe_device(
            settings.name,
            limits=settings.to_limits(),
            device=settings.training.device,
            datasets=sorted(settings.datasets),
        )
        for note in notes:
            _log(note)
        identity = Identity(settings.name, Topics(settings.federation), uuid.uuid4().hex, folder.instance)
        transport = MqttTransport(
            settings.broker.host,
            settings.broker.port,
            identity.client_id,
            will=identity.will(),
        )
        setup = Setup(
            profile=profile,
            datasets=settings.datasets,
            state=settings.state.resolve(),
            models={name: str(path) for name, path in settings.models.items()},
            transfer=settings.transfer,
        )
        daemon = Daemon(
            identity,
            transport,
            folder,
            setup,
            _log,
            within_hours=lambda when: within_hours(settings.limits, when.time()),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.request_stop())
        daemon.run()


def _log(text: str) -> None:
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stderr.write(f"{stamp} {text}\n")
    sys.stderr.flush()
