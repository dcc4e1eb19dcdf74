"""The paper's tables as experiments that run, resume and tabulate."""
