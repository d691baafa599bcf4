"""Measure several forms of one network in turns: one process, one thread, its own CPU time.

`python -m benchmarks.latency PATHS OPTIONS` (both JSON: a list of files;
`judge.Options`) prints the seconds of each run: a list of rounds, in each one number a file. What
else the machine does counts little: it is the time of the thread that is measured. Nothing of
graphpass is used.
"""

import json
import sys
import time

import onnxruntime as ort

from benchmarks.judge import Options, find_feeds, open_session

_MIN_ROUNDS = 7


def main() -> None:
    """Print the times of the files as JSON; [] where the first runs on nothing that is drawn."""
    paths, settings = map(json.loads, sys.argv[1:])
    options = Options(**settings)
    ort.set_default_logger_severity(4)
    plain = open_session(paths[0], "ORT_DISABLE_ALL", options)
    feed = next(find_feeds(plain, options), None)
    del plain
    rounds: list[list[float]] = []
    if feed is not None:
        sessions = [open_session(path, "ORT_ENABLE_ALL", options) for path in paths]
        for session in sessions:
            session.run(None, feed)
        end = time.thread_time() + options.latency_s * len(sessions)
        while time.thread_time() < end or len(rounds) < _MIN_ROUNDS:
            times_s = [0.0] * len(sessions)
            # Another one goes first in each round: none always finds the same one's cache.
            for turn in range(len(sessions)):
                which = (turn + len(rounds)) % len(sessions)
                start = time.thread_time()
                sessions[which].run(None, feed)
                times_s[which] = time.thread_time() - start
            rounds.append(times_s)
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
