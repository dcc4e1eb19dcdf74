"""The paper's tables and figures as experiments that can be resumed."""
