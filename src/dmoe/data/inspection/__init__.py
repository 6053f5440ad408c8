"""`dmoe inspect` of raw logs: what their columns are, and a data.yaml to start from."""

from dmoe.data.inspection.kinds import ColumnFacts
from dmoe.data.inspection.log import Inspection, inspect_log

__all__ = ["ColumnFacts", "Inspection", "inspect_log"]
