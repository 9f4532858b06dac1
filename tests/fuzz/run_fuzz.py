"""Fuzz one target: python tests/fuzz/run_fuzz.py TARGET --seconds N [--seed S]

Inputs that break a law are kept in the folder that `--keep` names, and given to the target again with `--again FILE`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["fedpipe_wire", "fedpipe_profiles", "fedpipe_coordinator.aggregation.gate"]):
    from fuzz_targets import targets


def main() -> None:
    """Run libFuzzer for a time; it ends this process, with 77 where a law was broken."""
    known = targets()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("target", choices=sorted(known))
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="0 draws one")
    parser.add_argument("--keep", type=Path, default=Path(), help="where broken inputs are kept")
    parser.add_argument("--again", type=Path, help="try one input only")
    given = parser.parse_args()
    target = known[given.target]
    if given.again is not None:
        target.law(given.again.read_bytes())
        return
    with tempfile.TemporaryDirectory(prefix="fedpipe-corpus-") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        options = [
            f"-max_total_time={given.seconds}",
            f"-seed={given.seed}",
            f"-max_len={max(target.largest, *map(len, target.seeds))}",
            f"-artifact_prefix={given.keep}/",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            corpus,
        ]

        def judge(data: bytes) -> None:
            target.law(data)

        atheris.Setup([sys.argv[0], *options], judge)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
