"""`dmoe inspect` of raw logs: what their columns are, and a data.yaml to start from."""

from dmoe.inspection.kinds import ColumnFacts
from dmoe.inspection.log import Inspection, inspect_log

__all__ = ["ColumnFacts", "Inspection", "inspect_log"]
