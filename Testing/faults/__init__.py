"""Faults injected into what the program writes: nothing that was there is lost, nothing half written is left.

    python -m Testing.faults                  all kinds once, as CI runs them: about two minutes
    python -m Testing.faults --hours 3        random moments and seeds until the time is over
    python -m Testing.faults --seed 7 --only bundle segment
    python -m Testing.faults --hours 3 --record faults.jsonl    goes on where a stopped campaign ended
    python -m Testing.faults.fuzzing --files 10000              damaged files for every reader
    python -m Testing.faults.cohort_kills --kills 200           kills of cohort workers

Run from the repository, with the package and its extra ``test`` installed. Each fault is injected into a process of
its own, which does a real piece of work (``workloads``). A table of what was injected and lost ends it, exit code 1 if
anything was.
"""
