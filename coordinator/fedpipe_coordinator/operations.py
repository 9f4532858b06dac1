"""What the command line may ask of a running coordinator, and the answers.

Owns the requests' forms: `run`, `watch`, `stop`, `status`, `agents`. Called on the service's own thread only.
"""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedpipe_coordinator.config import Job
from fedpipe_coordinator.control import ControlRequest
from fedpipe_coordinator.metrics import metrics_data
from fedpipe_coordinator.records.run_folder import RecordError
from fedpipe_coordinator.runs.run_state import RunState

if TYPE_CHECKING:
    from fedpipe_coordinator.service import Service


def handle(service: "Service", request: ControlRequest) -> None:
    """Answer a request; one of an unknown form is told so."""
    data = request.data
    match data.get("op"):
        case "run":
            request.answer(_run(service, data))
        case "watch":
            _watch(service, request)
        case "stop":
            request.answer(_stop(service, str(data.get("run"))))
        case "status":
            request.answer(
                {
                    "federation": service.federation,
                    "agents_online": service.registry.online(),
                    "refused": service.chronicle.refused(),
                    "runs": _runs(service),
                }
            )
        case "agents":
            request.answer({"agents": service.registry.describe()})
        case other:
            request.answer({"error": f"unknown request {other!r}: are fedpipe and the coordinator of one version?"})


def _runs(service: "Service") -> list[dict[str, Any]]:
    """All runs, newest first."""
    return [describe(state, service.keeper.trouble(state.run)) for state in reversed(service.runs.values())]


def describe(state: RunState, trouble: str = "") -> dict[str, Any]:
    """A run as plain data; `trouble` is what keeps its records from being written."""
    return {
        "run": state.run,
        "job": state.job.job.name,
        "phase": state.phase,
        "round": state.round,
        "rounds": state.job.rounds.number,
        "agents": {member.name: member.standing for member in state.members.values()},
        "initial_metric": metrics_data(state.initial_metric) or None,
        "final_metric": metrics_data(state.final_metric) or None,
        "replanned": {name: m.replanned for name, m in sorted(state.members.items()) if m.replanned},
        "failure": state.failure,
        "note": state.note or trouble or _delays(state) or _replanned(state),
    }


def _delays(state: RunState) -> str:
    """Why updates that were offered are not here yet, as far as that is known."""
    return "; ".join(
        f"{name}: {member.note}"
        for name, member in sorted(state.members.items())
        if state.open and member.fetch_at is not None and member.note
    )


def _replanned(state: RunState) -> str:
    """How the plans of this round differ from those before, and why."""
    changes = [f"{name}: {m.replanned}" for name, m in sorted(state.members.items()) if state.open and m.replanned]
    return "; ".join(changes)


def _run(service: "Service", data: dict[str, Any]) -> dict[str, Any]:
    try:
        job = Job.model_validate(data.get("job"))
    except ValidationError as error:
        return {"error": f"the job is not valid: {error}"}
    folder = data.get("folder")
    try:
        return {"run": service.submit(job, str(folder) if folder else None)}
    except RecordError as error:
        return {"error": str(error)}


def _watch(service: "Service", request: ControlRequest) -> None:
    run = str(request.data.get("run"))
    state = service.runs.get(run)
    if state is None:
        request.answer({"error": f"no run {run!r}: 'fedpipe status' lists them"})
        return
    service.watchers.follow(run, request.replies, service.keeper.told(run), over=not state.open)


def _stop(service: "Service", run: str) -> dict[str, Any]:
    state = service.runs.get(run)
    if state is None:
        return {"error": f"no run {run!r}: 'fedpipe status' lists them"}
    if not state.open:
        return {"error": f"run {run} is over already: {state.phase}"}
    service.stop_run(run)
    return {"run": run}
