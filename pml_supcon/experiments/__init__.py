"""The paper's experiments: registry, runner, statistics, tables and plots."""
