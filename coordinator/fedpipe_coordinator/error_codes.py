"""Which error ends the process with which code: the one table.

Its imports are half of the program's, so it is loaded only when an error is at hand.
"""

from fedpipe_coordinator.audit.federation_audit import AuditError
from fedpipe_coordinator.broker.managed import BrokerError
from fedpipe_coordinator.control import ControlBusyError, ControlError, ControlSocketError, RequestTooLargeError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home_lock import AlreadyRunningError, HomeError
from fedpipe_coordinator.records.run_folder import RecordError
from fedpipe_coordinator.security.owned_files import LockBusyError, OwnedFileError
from fedpipe_coordinator.store import StoreError
from fedpipe_coordinator.whatif.errors import CurvesError, DeviceError, FigureError, ModelConfigError, PlotError
from fedpipe_data.errors import DataError
from fedpipe_profiles.planning.problem import PlanningError
from fedpipe_profiles.settings_file import SettingsError
from fedpipe_wire.blob_bits import BlobError
from fedpipe_wire.certificates import CertificateError
from fedpipe_wire.enrolment import EnrolmentError
from fedpipe_wire.topics import TopicError
from fedpipe_wire.transport import TransportError

CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (SettingsError, ExitCode.BAD_SETTINGS),
    (TopicError, ExitCode.BAD_SETTINGS),
    (BrokerError, ExitCode.BROKER_CANNOT_START),
    (TransportError, ExitCode.BROKER_UNREACHABLE),
    (AlreadyRunningError, ExitCode.ALREADY_RUNNING),
    (HomeError, ExitCode.STORE_UNUSABLE),
    (RequestTooLargeError, ExitCode.BAD_SETTINGS),
    (ControlSocketError, ExitCode.STORE_UNUSABLE),
    (ControlBusyError, ExitCode.COORDINATOR_BUSY),
    (ControlError, ExitCode.COORDINATOR_NOT_RUNNING),
    (RecordError, ExitCode.STORE_UNUSABLE),
    (AuditError, ExitCode.STORE_UNUSABLE),
    (StoreError, ExitCode.STORE_UNUSABLE),
    (BlobError, ExitCode.STORE_UNUSABLE),
    (LockBusyError, ExitCode.COORDINATOR_BUSY),
    (OwnedFileError, ExitCode.CREDENTIALS_UNUSABLE),
    (CertificateError, ExitCode.CREDENTIALS_UNUSABLE),
    (EnrolmentError, ExitCode.ENROLMENT_REFUSED),
    (FigureError, ExitCode.USAGE),
    (DeviceError, ExitCode.INPUT_UNUSABLE),
    (ModelConfigError, ExitCode.MODEL_UNUSABLE),
    (CurvesError, ExitCode.INPUT_UNUSABLE),
    (PlotError, ExitCode.OUTPUT_UNWRITABLE),
    (PlanningError, ExitCode.BAD_SETTINGS),
    (DataError, ExitCode.DATA_UNUSABLE),
    # What no layer above foresaw of this machine's files; its text names the file.
    (OSError, ExitCode.STORE_UNUSABLE),
)
