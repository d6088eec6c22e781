"""`make bench`: the figures of one subject, `engine` unless another is named.

python -m benchmarks [engine|wire|log|cluster] [options]
"""

from __future__ import annotations

import sys

from benchmarks import engine
from benchmarks.cluster import run as cluster
from benchmarks.log import run as log
from benchmarks.wire import run as wire

SUBJECTS = {"engine": engine.main, "wire": wire.main, "log": log.main, "cluster": cluster.main}


def main() -> int:
    """Measure the subject that the first argument names."""
    arguments = sys.argv[1:]
    subject = arguments.pop(0) if arguments and arguments[0] in SUBJECTS else "engine"
    return SUBJECTS[subject](arguments)


if __name__ == "__main__":
    sys.exit(main())
