"""`fedpipe-agent run`: measure this machine, connect, and work until asked to stop."""

import signal
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_agent.address import address_of
from fedpipe_agent.audit import AuditRecord
from fedpipe_agent.checks import Setup
from fedpipe_agent.config import AgentSettings, load_agent_settings, within_hours
from fedpipe_agent.daemon import Daemon
from fedpipe_agent.identity import Identity
from fedpipe_agent.passport import Enrolled, Unsigned
from fedpipe_agent.preflight import check
from fedpipe_agent.probe import measure_again, probe_device
from fedpipe_agent.seals import Seals
from fedpipe_agent.state_folder import StateFolder
from fedpipe_profiles.device import MIB
from fedpipe_profiles.plain_text import plain
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
        passport = open_passport(settings)
        _log(f"agent {settings.name}: measuring this machine")
        profile, notes = probe_device(
            settings.name,
            limits=settings.to_limits(),
            device=settings.training.device,
            datasets=sorted(settings.datasets),
        )
        for note in notes:
            _log(note)
        address = address_of(settings, passport.bundle)
        identity = Identity(settings.name, Topics(address.federation), uuid.uuid4().hex, folder.instance)
        seals = Seals(identity, folder.next_counter, passport)
        transport = MqttTransport(
            address.host,
            address.port,
            identity.client_id,
            will=lambda: seals.will,
            tls=passport.context if isinstance(passport, Enrolled) else None,
        )
        setup = Setup(
            profile=profile,
            datasets=settings.datasets,
            state=settings.state.resolve(),
            models={name: str(path) for name, path in settings.models.items()},
            transfer=settings.transfer,
            hub_models=frozenset(settings.training.hub_models),
            trusted_models=frozenset(settings.training.trust_remote_code),
        )
        daemon = Daemon(
            identity,
            transport,
            folder,
            setup,
            _log,
            seals=seals,
            record=AuditRecord(folder.path, settings.audit.max_mib * MIB, settings.name, log=_log),
            within_hours=lambda when: within_hours(settings.limits, when.time()),
            measure=measure_again,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.request_stop())
        daemon.run()


def open_passport(settings: AgentSettings) -> Enrolled | Unsigned:
    """What this agent shows and trusts; raises as `Enrolled`."""
    if not settings.broker.insecure:
        return Enrolled(settings.state, settings.name, _log)
    _log(
        "WARNING: insecure = true: no TLS, no keys, no signatures. Every process on this machine can give this agent "
        "tasks and read what it sends. This is for trying things out, never for private data"
    )
    return Unsigned()


def _log(text: str) -> None:
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stderr.write(f"{stamp} {plain(text)}\n")  # the coordinator writes some of it
    sys.stderr.flush()
