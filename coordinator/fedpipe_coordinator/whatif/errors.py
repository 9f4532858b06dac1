"""What the what-if raises; each message says what was given, what is allowed, and what to do."""


class WhatIfError(Exception):
    """A what-if cannot be answered."""


class DeviceError(WhatIfError):
    """A device that was named cannot be planned for: unknown, unreadable, or with figures that contradict."""


class ModelConfigError(WhatIfError):
    """The model's configuration cannot be found or used."""


class FigureError(WhatIfError):
    """A figure given on the command line is out of bounds."""


class CurvesError(WhatIfError):
    """Recorded contributions cannot be used for this job."""


class PlotError(WhatIfError):
    """The plot cannot be written."""
