"""A copy of install.sh's checkout, and a stand-in for the Python that it finds.

The stand-in answers for `venv` and `pip` and passes everything else on to a real Python: nothing is downloaded, and
what pip was asked for can be read in a log.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
INSTALL = REPOSITORY / "install.sh"
LAST_LINE = 'main "$@"\n'

STAND_IN = r"""#!/bin/bash
if [[ "$1" == -c && "$2" == *'version_info[:2]'* ]]; then echo "${FAKE_VERSION:-3.11}"; exit; fi
if [[ "$1" == -c && "$2" == *ensurepip* ]]; then exit "${FAKE_NO_ENSUREPIP:-0}"; fi
if [[ "$1" == -m && "$2" == venv ]]; then
  echo "venv" >>"$CALLS"
  mkdir -p "$3/bin" && echo "home = x" >"$3/pyvenv.cfg" && cp "$0" "$3/bin/python"
  exit
fi
if [[ "$1" == -m && "$2" == pip ]]; then
  echo "$*" >>"$CALLS"
  if [[ "$*" == *"${FAKE_PIP_FAILS:-no such call}"* ]]; then echo "ERROR: ${FAKE_PIP_SAYS:-broken}"; exit 1; fi
  while (($#)); do [[ "$1" != --report ]] || report="$2"; shift; done
  if [[ -n "$report" ]]; then
    printf '{"install": [{"metadata": {"requires_dist": ["filelock", "%s"]}}]}' "$FAKE_TORCH" >"$report"
  else
    bin="$(dirname "$0")"
    printf '#!/bin/sh\necho "fedpipe $*"\n' >"$bin/fedpipe" && chmod +x "$bin/fedpipe"
  fi
  exit
fi
[[ "$1" != -c || "$2" != "import pip" ]] || exit 0
exec REAL_PYTHON "$@"
"""


@dataclass
class Checkout:
    """A copy of install.sh and what it reads, and how to run it there."""

    folder: Path
    programs: Path
    calls: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def override(self, *functions: str) -> None:
        """Put shell functions in the place of install.sh's own."""
        script = self.folder / "install.sh"
        text = script.read_text(encoding="utf-8")
        assert text.endswith(LAST_LINE)
        script.write_text(text.removesuffix(LAST_LINE) + "\n".join(functions) + "\n" + LAST_LINE, encoding="utf-8")

    def run(
        self, *arguments: str, prefix: tuple[str, ...] = (), cwd: Path | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*prefix, str(self.folder / "install.sh"), *arguments],
            cwd=cwd or self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def pip_calls(self) -> list[str]:
        return self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []

    def files(self) -> set[Path]:
        return set(self.folder.rglob("*"))


def program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def remove_override(checkout: Checkout, function: str) -> None:
    """Let install.sh use its own function again."""
    script = checkout.folder / "install.sh"
    lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not (line.startswith(f"{function}() {{") and line.endswith("; }\n"))]
    assert len(kept) == len(lines) - 1
    script.write_text("".join(kept), encoding="utf-8")
