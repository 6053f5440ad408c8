"""What the best possible model would reach on each task, domain and split of a planted log.

Shape suffixes: R rows, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoe.synthetic.draw import Columns
from dmoe.synthetic.logit import Floats, sum_parts
from dmoe.synthetic.tasks import Drawn, Joint, PlantedTasks
from dmoe.synthetic.truth import PartVariances, SplitTruth, split_bounds


class LogTruth:
    """Accumulates the truth of a log, block by block in order."""

    def __init__(self, planted: PlantedTasks, rows: int) -> None:
        self._planted = planted
        self._bounds = split_bounds(rows)
        outputs = (*planted.preset.tasks, *("+".join(chain) for chain in planted.chains.values()))
        domains = len(planted.preset.domains.shifts) if planted.preset.domains is not None else 0
        # A few MB each once rows come, so that of a split that is over only the figures stay.
        self._splits: dict[str, dict[str, TaskTruth]] = {
            split: {output: TaskTruth(domains) for output in outputs} for split in self._bounds
        }
        self._results: dict[str, dict[str, dict[str, Any]]] = {}
        self.variances = PartVariances()
        self._correlations = LogitCorrelations(len(planted.preset.tasks))

    def add(self, columns: Columns, drawn: Drawn, joints: Mapping[str, Joint]) -> None:
        self.variances.add(drawn.parts[0])
        self._correlations.add(drawn.parts)
        end = columns.start + len(columns)
        for split, (first, last) in self._bounds.items():
            here = slice(max(first - columns.start, 0), max(last - columns.start, 0))
            domain_R = drawn.domain_R[here] if drawn.domain_R is not None else None
            if split in self._splits:
                outputs = {
                    name: (drawn.probabilities[name], drawn.labels[name] == 1, drawn.known[name])
                    for name in drawn.labels
                } | {
                    "+".join(self._planted.chains[name]): (joint.probability_R, joint.label_R, joint.known_R)
                    for name, joint in joints.items()
                }
                for name, (probability_R, positive_R, known_R) in outputs.items():
                    self._splits[split][name].add(probability_R[here], positive_R[here], known_R[here], domain_R)
                if end >= last:
                    self._results[split] = {name: one.result() for name, one in self._splits.pop(split).items()}

    def splits(self) -> dict[str, dict[str, Any]]:
        """The main task's figures by split."""
        named = {"rate": "click_rate", "expected_rate": "expected_click_rate"}
        label = self._planted.preset.label
        return {
            split: {
                named.get(key, key): value for key, value in outputs[label].items() if key not in ("domains", "macro")
            }
            for split, outputs in self._results.items()
        }

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Each task's figures by split, if there are several tasks or domains; `joint`: with all tasks above it."""
        preset, chains = self._planted.preset, self._planted.chains
        if not preset.further_tasks and preset.domains is None:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for task, (name, correlation) in enumerate(zip(preset.tasks, self._correlations.result(), strict=True)):
            given = preset.further_tasks[task - 1].given if task else None
            splits = {split: outputs[name] for split, outputs in self._results.items()}
            if name in chains:
                joint = "+".join(chains[name])
                splits = {split: {**splits[split], "joint": self._results[split][joint]} for split in splits}
            found[name] = {
                "given": given,
                "logit_correlation": correlation if task else 1.0,
                "bias": self._planted.biases[task],
                "splits": splits,
            }
        return found


class TaskTruth:
    """Accumulates a task's `SplitTruth` over all rows where it is known, and over those of each domain."""

    def __init__(self, domains: int) -> None:
        self._whole = SplitTruth()
        self._domains = [SplitTruth() for _ in range(domains)]

    def add(
        self,
        probability_R: NDArray[np.float32],
        positive_R: NDArray[np.bool_],
        known_R: NDArray[np.bool_],
        domain_R: NDArray[np.int64] | None,
    ) -> None:
        self._whole.add(probability_R[known_R], positive_R[known_R])
        if domain_R is not None:
            for number, domain in enumerate(self._domains):
                here_R = known_R & (domain_R == number)
                domain.add(probability_R[here_R], positive_R[here_R])

    def result(self) -> dict[str, Any]:
        """Figures of all known rows; with domains also of each (by its text), and their means (`macro`).

        The means leave out domains of one class, which `left_out` names.
        """
        found = self._whole.result()
        if not self._domains:
            return found
        domains = {str(number): domain.result() for number, domain in enumerate(self._domains)}
        both = [figures for figures in domains.values() if figures.get("bayes_auc") is not None]
        macro = {name: float(np.mean([one[name] for one in both])) for name in ("bayes_auc", "bayes_logloss") if both}
        left_out = [name for name, figures in domains.items() if figures.get("bayes_auc") is None]
        return {**found, "domains": domains, "macro": {**macro, "left_out": left_out}}


class LogitCorrelations:
    """Accumulates the correlation of each task's logit, without its base rates, with the main task's."""

    def __init__(self, tasks: int) -> None:
        self._rows = 0
        self._sums_T = np.zeros(tasks)
        self._products_TT = np.zeros((tasks, tasks))

    def add(self, parts: Sequence[Mapping[str, Floats]]) -> None:
        logits_TR = np.stack([sum_parts(task) for task in parts])
        self._rows += logits_TR.shape[1]
        self._sums_T += logits_TR.sum(1)
        self._products_TT += logits_TR @ logits_TR.T

    def result(self) -> list[float]:
        mean_T = self._sums_T / self._rows
        covariance_TT = self._products_TT / self._rows - np.outer(mean_T, mean_T)
        deviation_T = np.sqrt(np.diag(covariance_TT))
        return [float(value) for value in covariance_TT[0] / (deviation_T[0] * deviation_T)]
