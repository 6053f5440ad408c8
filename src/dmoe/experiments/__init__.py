"""The paper's tables and figures as grids of runs, and what lies beyond them; `dmoe experiment` runs them."""
