"""Which cases `--short` leaves out: `pytest -n 2 --short --durations=0 | tee LOG; python -m tests.slow LOG [SECONDS]`.

Cases of the run that took longer than so many seconds (3 if left out) join those of `slow.txt`; each test keeps its
quickest. To choose all of them anew, empty the file and run without `--short`.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

SLOW = Path(__file__).parent / "slow.txt"
LINE = re.compile(r"^([\d.]+)s (?:setup|call|teardown) +(\S+::.+)$", re.MULTILINE)


def joined(log: str, known: list[str], least: float) -> list[str]:
    """All that are left out, the quickest first; those that did not run this time come last, as they were."""
    seconds: dict[str, float] = defaultdict(float)
    for took, case in LINE.findall(log):
        seconds[case] += float(took)
    now = sorted((c for c, took in seconds.items() if took > least), key=lambda c: seconds[c])
    return [*now, *(case for case in known if case not in seconds)]


if __name__ == "__main__":
    limit = float(sys.argv[2]) if sys.argv[2:] else 3.0
    found = joined(Path(sys.argv[1]).read_text(), SLOW.read_text().splitlines(), limit)
    SLOW.write_text("\n".join(found) + "\n")
    print(f"{len(found)} cases")
