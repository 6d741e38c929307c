"""The paper's claims as experiments, one function each."""
