#!/usr/bin/env bash
# Sets FedPipe up from its checkout, then runs its demo or its tests. `./install.sh --help` says how.
#
# Everything stands in functions and the last line calls main, so that a file cut short does nothing.
set -euo pipefail

readonly EXIT_USAGE=2 EXIT_UNSUPPORTED=3 EXIT_MOSQUITTO=4 EXIT_PIP=5 EXIT_DISK=6 EXIT_NOT_YET=7
readonly PIP_TIMEOUT_S="${FEDPIPE_PIP_TIMEOUT_S:-3600}" APT_TIMEOUT_S=900
readonly CPU_TORCH_INDEX="https://download.pytorch.org/whl/cpu"
# What a virtual environment takes (see README), with room for unpacking it.
readonly NEED_CPU_MIB=3000 NEED_NVIDIA_MIB=9000
readonly OLDEST_PYTHON="3.11"

ROOT="" VENV="" DRY_RUN=0 PY="" APT_UPDATED=0

usage() {
  cat <<'HELP'
Usage: ./install.sh [--dry-run] demo [ARGUMENTS]   set up, then `fedpipe demo ARGUMENTS`
       ./install.sh [--dry-run] test [ARGUMENTS]   set up, then scripts/test: the checks, then pytest ARGUMENTS
       ./install.sh --help

A second run reuses what the first one made. --dry-run prints every step and changes nothing.

Environment:
  PYTHON               the Python to use; otherwise python3.13, python3.12, python3.11 or python3
  FEDPIPE_VENV         the virtual environment's folder; otherwise .venv in the checkout
  FEDPIPE_TORCH_INDEX  the package index that torch comes from, or `default` for pip's own choice;
                       otherwise pip's own, except that a machine without an NVIDIA GPU is given
                       PyTorch's CPU build where pip's choice would bring the CUDA packages
  FEDPIPE_PIP_TIMEOUT_S  the longest that one pip command may take; otherwise 3600

Exit codes of the set-up (the demo's and the tests' own follow after it):
  2  wrong usage
  3  unsupported system or Python
  4  Mosquitto 2 is missing and could not be installed
  5  pip failed, or took too long
  6  too little disk space, or a folder that may not be written
  7  not in this version: coordinator, agent, uninstall
HELP
}

say() { printf 'install.sh: %s\n' "$*" >&2; }

# fail CODE WHAT WHY DO
fail() {
  printf 'install.sh: error: %s\n  why: %s\n  do:  %s\n' "$2" "$3" "$4" >&2
  exit "$1"
}

# Runs a command that changes something; with --dry-run only prints it.
act() {
  if ((DRY_RUN)); then
    say "would run: $(printf '%q ' "$@")"
  else
    "$@"
  fi
}

# Prints large downloads only, one short line each; the whole output is in the log.
show_progress() {
  sed -u -n -e 's#^ *Downloading \([^ ]*/\)\{0,1\}\([^ ]* ([0-9.]* [MG]B)\)$#  downloading \2#p' \
    -e 's/^Installing collected packages.*/  unpacking/p' >&2
}

# logged LOG COMMAND...: its output goes to the file, not through a pipe, which a child that outlives it would hold open.
logged() {
  local log="$1" status=0 written child progress
  shift
  touch -- "$log"
  written="$(stat -c %s -- "$log")"
  "$@" </dev/null >>"$log" 2>&1 9<&- &
  child=$!
  { tail -c "+$((written + 1))" -s 0.1 -f --pid="$child" -- "$log" | show_progress; } 9<&- &
  progress=$!
  wait "$child" || status=$?
  wait "$progress" || true
  return "$status"
}

end_children() {
  local child
  for child in $(jobs -p); do kill "$child" 2>/dev/null || true; done
  exit "$1"
}

find_root() {
  ROOT="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]:-./stdin}")")" && pwd -P)"
  if ! grep -qs '^name = "fedpipe"$' "$ROOT/pyproject.toml"; then
    fail "$EXIT_USAGE" "no FedPipe checkout in $ROOT" "install.sh installs the checkout that it lies in" \
      "clone the repository and run ./install.sh in it"
  fi
  VENV="$(realpath -m -- "${FEDPIPE_VENV:-$ROOT/.venv}")"
}

check_system() {
  local system
  system="$(uname -s) $(uname -m)"
  case "$system" in
    "Linux x86_64" | "Linux aarch64") ;;
    *)
      fail "$EXIT_UNSUPPORTED" "unsupported system: $system" \
        "FedPipe runs on Linux on x86_64 or aarch64, where its libraries are published" \
        "use such a machine, a virtual one or a container"
      ;;
  esac
}

has_nvidia() { [[ -e /dev/nvidia0 ]] || command -v nvidia-smi >/dev/null; }

torch_flavour() { if has_nvidia; then echo nvidia; else echo cpu; fi; }

# ---------------------------------------------------------------- system packages

may_install() {
  command -v apt-get >/dev/null || return 1
  [[ "$(id -u)" == 0 ]] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

apt_get() {
  local -a command=(env DEBIAN_FRONTEND=noninteractive timeout "$APT_TIMEOUT_S"
    apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@")
  [[ "$(id -u)" == 0 ]] || command=(sudo -n "${command[@]}")
  if ((DRY_RUN)); then
    act "${command[@]}"
    return
  fi
  local log status=0
  log="$(mktemp)"
  logged "$log" "${command[@]}" || status=$?
  ((status == 0)) || tail -n 8 -- "$log" >&2
  rm -f -- "$log"
  return "$status"
}

install_package() {
  say "installing the system's package $1"
  if ! ((APT_UPDATED)); then
    apt_get update || say "apt-get update failed; trying with the lists that are there"
    APT_UPDATED=1
  fi
  apt_get install -y --no-install-recommends "$1"
}

# ---------------------------------------------------------------- Python

# Prints "X.Y" for a Python that starts, else nothing.
python_version() {
  timeout 20 "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null || true
}

is_new_enough() { [[ -n "$1" && "$(printf '%s\n%s\n' "$OLDEST_PYTHON" "$1" | sort -V | head -n 1)" == "$OLDEST_PYTHON" ]]; }

can_make_venvs() { timeout 20 "$1" -c 'import ensurepip, venv' 2>/dev/null </dev/null; }

find_python() {
  local -a candidates=(python3.13 python3.12 python3.11 python3)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  local candidate version without_venv="" seen=""
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null || continue
    version="$(python_version "$candidate")"
    seen+="${seen:+, }$candidate is ${version:-not usable}"
    is_new_enough "$version" || continue
    if can_make_venvs "$candidate"; then
      PY="$(command -v "$candidate")"
      say "Python $version: $PY"
      return
    fi
    without_venv="${without_venv:-$candidate}"
  done
  if [[ -z "$without_venv" ]]; then
    fail "$EXIT_UNSUPPORTED" "no Python of at least $OLDEST_PYTHON" "${seen:-none of ${candidates[*]} was found}" \
      "install one (Debian 12 and Ubuntu 24.04: apt-get install python3 python3-venv; Ubuntu 22.04: python3.11 python3.11-venv), or name one in PYTHON"
  fi
  install_venv_module "$without_venv"
}

install_venv_module() {
  local version package
  version="$(python_version "$1")"
  package="python$version-venv"
  [[ "$(python_version /usr/bin/python3)" != "$version" ]] || package="python3-venv"
  if ! may_install || ! install_package "$package"; then
    fail "$EXIT_UNSUPPORTED" "$1 cannot make virtual environments" \
      "its module ensurepip is missing, and this user may not install packages or the installation failed" \
      "run: sudo apt-get install $package"
  fi
  PY="$(command -v "$1")"
  if ! ((DRY_RUN)) && ! can_make_venvs "$PY"; then
    fail "$EXIT_UNSUPPORTED" "$PY still cannot make virtual environments" \
      "it does not use the modules of the package $package" "name another Python in PYTHON"
  fi
}

# ---------------------------------------------------------------- Mosquitto

find_mosquitto() { PATH="$PATH:/usr/local/sbin:/usr/sbin" command -v mosquitto; }

mosquitto_version() {
  { timeout 10 "$1" -h 2>&1 </dev/null || true; } | sed -n 's/^mosquitto version \([0-9.]*\).*/\1/p'
}

# The package starts a broker of its own on port 1883, which FedPipe does not use.
stop_packaged_broker() {
  local -a as_root=()
  [[ "$(id -u)" == 0 ]] || as_root=(sudo -n)
  if [[ -d /run/systemd/system ]]; then
    act "${as_root[@]}" timeout 60 systemctl disable --now --quiet mosquitto.service || true
  elif [[ -x /etc/init.d/mosquitto ]]; then
    act "${as_root[@]}" timeout 60 /etc/init.d/mosquitto stop >/dev/null 2>&1 </dev/null || true
  fi
}

ensure_mosquitto() {
  local path version
  if ! path="$(find_mosquitto)"; then
    if ! may_install; then
      fail "$EXIT_MOSQUITTO" "Mosquitto, the MQTT broker, is missing" \
        "this user may not install packages (neither root, nor sudo without a password, or no apt-get)" \
        "install the package mosquitto, version 2.0 or later: sudo apt-get install mosquitto"
    fi
    if ! install_package mosquitto; then
      fail "$EXIT_MOSQUITTO" "the package mosquitto could not be installed" "apt-get failed (see above)" \
        "run: sudo apt-get install mosquitto"
    fi
    stop_packaged_broker
    ! ((DRY_RUN)) || return 0
    path="$(find_mosquitto)" || fail "$EXIT_MOSQUITTO" "mosquitto is not found" \
      "the package was installed, yet no such program is on the path" "put its folder on PATH"
  fi
  version="$(mosquitto_version "$path")"
  if [[ "$(printf '2.0\n%s\n' "$version" | sort -V | head -n 1)" != "2.0" ]]; then
    fail "$EXIT_MOSQUITTO" "$path is version ${version:-unknown}" "FedPipe needs Mosquitto 2.0 or later" \
      "install a newer package mosquitto"
  fi
  say "Mosquitto $version: $path"
}

# ---------------------------------------------------------------- the virtual environment

# The stamp's two lines: what makes an environment unusable when it changes, and what asks for pip again.
identity() { printf '%s|%s|%s|%s' "$VENV" "$ROOT" "$1" "$(torch_flavour)"; }

inputs_hash() {
  { cat -- "$ROOT/pyproject.toml" "$ROOT/constraints.txt" && printf '%s %s' "$1" "${FEDPIPE_TORCH_INDEX:-}"; } |
    sha256sum | cut -d ' ' -f 1
}

stamp_line() { sed -n "$1p" "$VENV/fedpipe-stamp" 2>/dev/null || true; }

is_whole() {
  local version
  version="$(python_version "$VENV/bin/python")"
  [[ -x "$VENV/bin/fedpipe" && -n "$version" && "$(stamp_line 1)" == "$(identity "$version")" ]] || return 1
  [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$version" ]]
}

# The extra `dev` holds all of `demo`.
is_current() {
  is_whole || return 1
  local installed
  installed="$(stamp_line 2)"
  [[ "$installed" == "$(inputs_hash "$1")" || "$installed" == "$(inputs_hash dev)" ]]
}

check_disk() {
  local folder="$VENV" need="$NEED_CPU_MIB" free
  ! has_nvidia || need="$NEED_NVIDIA_MIB"
  while [[ ! -d "$folder" ]]; do folder="$(dirname -- "$folder")"; done
  free="$(df --output=avail -BM -- "$folder" | tail -n 1 | tr -dc 0-9)"
  if ((free < need)); then
    fail "$EXIT_DISK" "too little disk space for $VENV" "$free MiB are free, $need MiB are needed" \
      "free some, or name a folder on another disk in FEDPIPE_VENV"
  fi
  if [[ ! -w "$folder" ]]; then
    fail "$EXIT_DISK" "$folder may not be written" "it belongs to another user or is read-only" \
      "name another folder in FEDPIPE_VENV"
  fi
}

is_usable_venv() {
  [[ -f "$VENV/pyvenv.cfg" ]] && is_new_enough "$(python_version "$VENV/bin/python")" &&
    timeout 60 "$VENV/bin/python" -c 'import pip' 2>/dev/null </dev/null
}

# Removes only what this script made; moves aside what it did not and cannot use.
clear_place() {
  if [[ -e "$VENV/fedpipe-made" ]]; then
    is_whole && return
    say "remaking $VENV: it is half made, or was made for another Python, GPU or folder"
    act rm -rf -- "$VENV"
  elif [[ -n "$(ls -A -- "$VENV" 2>/dev/null)" ]] && ! is_usable_venv; then
    if [[ -n "${FEDPIPE_VENV:-}" && ! -f "$VENV/pyvenv.cfg" ]]; then
      fail "$EXIT_USAGE" "$VENV is not a virtual environment" "it holds other files, which stay as they are" \
        "name a folder in FEDPIPE_VENV that is empty or does not exist"
    fi
    say "moving $VENV aside: it does not work"
    act mv -- "$VENV" "$VENV.broken-$$"
  fi
}

make_venv() {
  clear_place
  if [[ -f "$VENV/pyvenv.cfg" ]] && ! ((DRY_RUN)); then
    rm -f -- "$VENV/fedpipe-stamp"
    return
  fi
  say "making the virtual environment $VENV"
  act mkdir -p -- "$VENV"
  act touch -- "$VENV/fedpipe-made"
  if ((DRY_RUN)); then
    act "$PY" -m venv "$VENV"
  elif ! logged "$VENV/fedpipe-install.log" timeout 300 "$PY" -m venv "$VENV"; then
    tail -n 8 -- "$VENV/fedpipe-install.log" >&2
    fail "$EXIT_UNSUPPORTED" "$PY could not make $VENV" "see the lines above" "name another Python in PYTHON"
  fi
}

pip() {
  local -a command=("$VENV/bin/python" -m pip --no-input --disable-pip-version-check --timeout 30 --retries 3 "$@")
  if ((DRY_RUN)); then
    act "${command[@]}"
    return
  fi
  # Its own folder for unpacking: /tmp is often small and in memory.
  mkdir -p -- "$VENV/tmp"
  logged "$VENV/fedpipe-install.log" env TMPDIR="$VENV/tmp" timeout "$PIP_TIMEOUT_S" "${command[@]}"
}

# pip_failed WHAT DO
pip_failed() {
  local log="$VENV/fedpipe-install.log"
  grep -v '^ *$' -- "$log" | tail -n 6 >&2 || true
  if grep -q 'No space left on device' -- "$log"; then
    fail "$EXIT_DISK" "$1" "the disk is full" "free some space, or name a folder on another disk in FEDPIPE_VENV"
  fi
  fail "$EXIT_PIP" "$1" "pip failed or took longer than $PIP_TIMEOUT_S s; its last lines are above, all are in $log" "$2"
}

# Prints "cuda" or "cpu": what the torch that pip would choose by itself asks for.
default_torch() {
  local report="$VENV/fedpipe-torch.json"
  pip install --progress-bar off --dry-run --no-deps --report "$report" -c "$ROOT/constraints.txt" torch || return
  "$VENV/bin/python" - "$report" <<'PYTHON'
import json
import sys

from pip._vendor.packaging.requirements import Requirement

with open(sys.argv[1], encoding="utf-8") as file:
    chosen = json.load(file)["install"]
lines = [line for item in chosen for line in item["metadata"].get("requires_dist") or ()]
needed = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
print("cuda" if any(r.name.lower().startswith(("nvidia-", "cuda-")) for r in needed) else "cpu")
PYTHON
}

install_torch() {
  local index="${FEDPIPE_TORCH_INDEX:-}" found
  if [[ -z "$index" ]] && ! has_nvidia; then
    if ((DRY_RUN)); then
      say "would ask pip which torch it chooses: if one with CUDA packages, torch comes from $CPU_TORCH_INDEX"
    else
      found="$(default_torch)" || pip_failed "pip cannot find torch" \
        "check the network and pip's settings (python3 -m pip config list), then run this again"
      if [[ "$found" == cuda ]]; then
        say "no NVIDIA GPU here: taking torch's CPU build from $CPU_TORCH_INDEX"
        index="$CPU_TORCH_INDEX"
      fi
    fi
  fi
  [[ -n "$index" && "$index" != default ]] || return 0
  pip install --progress-bar off --no-deps --index-url "$index" -c "$ROOT/constraints.txt" torch ||
    pip_failed "torch could not be installed from $index" \
      "name another index with torch in FEDPIPE_TORCH_INDEX, or set it to \`default\` to take pip's own choice (with CUDA packages: $NEED_NVIDIA_MIB MiB)"
}

install_fedpipe() {
  say "installing FedPipe and its libraries (extra: $1); the first time takes some minutes"
  pip install --progress-bar off -c "$ROOT/constraints.txt" --editable "${ROOT}[$1]" ||
    pip_failed "FedPipe's libraries could not be installed" \
      "check the network and pip's settings, then run this again: what was downloaded is kept"
}

write_stamp() {
  if ((DRY_RUN)); then
    say "would write $VENV/fedpipe-stamp"
    return
  fi
  rm -rf -- "$VENV/tmp"
  printf '%s\n%s\n' "$(identity "$(python_version "$VENV/bin/python")")" "$(inputs_hash "$1")" >"$VENV/fedpipe-stamp"
  say "set-up done: $(du -sm -- "$VENV" | cut -f 1) MiB in $VENV"
}

# ---------------------------------------------------------------- verbs

# Two runs at once would spoil each other's environment. The lock is on the checkout's folder itself.
take_lock() {
  ! ((DRY_RUN)) && command -v flock >/dev/null || return 0
  exec 9<"$ROOT"
  flock -n 9 && return
  say "waiting for another install.sh in $ROOT"
  flock -w "$PIP_TIMEOUT_S" 9 || fail "$EXIT_PIP" "another install.sh is still running" \
    "it has held the lock on $ROOT for $PIP_TIMEOUT_S s" "wait for it, or end it"
}

set_up() {
  check_system
  take_lock
  if is_current "$1"; then
    ensure_mosquitto
    say "nothing changed since the last set-up: using $VENV"
  else
    find_python
    ensure_mosquitto
    check_disk
    make_venv
    install_torch
    install_fedpipe "$1"
    write_stamp "$1"
  fi
  ((DRY_RUN)) || exec 9<&-
}

run_demo() {
  set_up demo
  export PATH="$PATH:/usr/local/sbin:/usr/sbin"
  act exec "$VENV/bin/fedpipe" demo "$@"
}

run_test() {
  set_up dev
  export PATH="$PATH:/usr/local/sbin:/usr/sbin" FEDPIPE_VENV="$VENV"
  act exec "$ROOT/scripts/test" "$@"
}

main() {
  trap 'end_children 130' INT
  trap 'end_children 143' TERM
  while (($#)); do
    case "$1" in
      --dry-run) DRY_RUN=1 ;;
      -h | --help) usage && return ;;
      *) break ;;
    esac
    shift
  done
  local verb="${1:-}"
  shift || true
  # After the verb too, where people write it; everything else belongs to the demo or to pytest.
  if [[ "${1:-}" == --dry-run ]]; then
    DRY_RUN=1
    shift
  fi
  case "$verb" in
    demo | test)
      find_root
      "run_$verb" "$@"
      ;;
    coordinator | agent | uninstall)
      fail "$EXIT_NOT_YET" "'$verb' is not in this version" "install.sh sets up only the demo and the tests so far" \
        "see README.md for installing with pip, and the unit files in agent/systemd and coordinator/systemd"
      ;;
    *)
      usage >&2
      fail "$EXIT_USAGE" "unknown verb '$verb'" "the verbs are demo and test" "see the usage above"
      ;;
  esac
}

main "$@"
