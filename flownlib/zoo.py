"""A zoo: the weights of many trained classifiers and a table of what is known about each; select, split by seed, store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from flownlib.networks import Model, classifier
from flownlib.weights import Artifact, ArtifactError, Layout, Weights


@dataclass(frozen=True)
class Zoo:
    """Weights float32 [n, p], a table with one row a network, and the layout of the p numbers."""

    weights: Weights
    table: pd.DataFrame
    model: Model
    settings: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def layout(self) -> Layout:
        """Where each tensor lies in a row."""
        return self.model.layout

    @property
    def tasks(self) -> list[str]:
        """Task names in order of first appearance."""
        return list(dict.fromkeys(self.table["task"]))

    def select(self, mask: Sequence[bool] | pd.Series) -> Zoo:
        """The networks where the mask holds."""
        rows = torch.tensor(pd.Series(mask).to_numpy(dtype=bool))
        return replace(self, weights=self.weights[rows], table=self.table[rows.numpy()].reset_index(drop=True))

    def task(self, name: str) -> Zoo:
        """The networks of one task."""
        return self.select(self.table["task"] == name)

    def split(self, held_out: int) -> tuple[Zoo, Zoo]:
        """(training, held-out) zoos: the last `held_out` seeds of each task are held out, with all their checkpoints.

        Raises:
            ValueError: if a task would have no training seed left.
        """
        rank = self.table.groupby("task")["seed"].rank(method="dense", ascending=False)
        if held_out >= self.table.groupby("task")["seed"].nunique().min():
            raise ValueError(f"cannot hold out {held_out} seeds a task: some task has no more than that")
        return self.select(rank > held_out), self.select(rank <= held_out)

    def with_weights(self, weights: Tensor) -> Zoo:
        """The same rows with other weights, e.g. aligned ones."""
        return replace(self, weights=weights)

    def digest(self) -> str:
        """Hash of the weights and the table: equal for equal zoos."""
        digest = hashlib.sha256(self.weights.cpu().contiguous().numpy().tobytes())
        digest.update(self.table.to_json(double_precision=15).encode())
        return digest.hexdigest()[:16]

    def as_artifact(self) -> Artifact:
        """The zoo as tensors and JSON."""
        meta = {
            "table": self.table.to_dict(orient="list"),
            "classifier": self.model.name,
            "layout": self.layout.as_json(),
            "settings": self.settings,
        }
        return Artifact({"weights": self.weights}, meta)

    @classmethod
    def from_artifact(cls, artifact: Artifact, source: Path | str = "the artefact", model: Model | None = None) -> Zoo:
        """The inverse of `as_artifact`.

        Args:
            artifact: as stored.
            source: what messages call it.
            model: where its name is not that of a `classifier`.

        Raises:
            ArtifactError: if it is damaged, no zoo, or of another model.
        """
        meta = artifact.meta
        if not {"table", "classifier", "layout", "settings"} <= meta.keys() or "weights" not in artifact.tensors:
            raise ArtifactError(f"{source} is not a zoo: it has no weights, table, classifier, layout or settings.")
        try:
            stored_of = model or classifier(str(meta["classifier"]))
        except ValueError:
            raise ArtifactError(f"{source} is a zoo of {meta['classifier']!r}; give its model when you load it.") from None
        try:
            layout, table = Layout.from_json(meta["layout"]), pd.DataFrame(meta["table"])
        except (TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{source} is not a zoo: its table or layout is damaged ({type(error).__name__}).") from None
        if layout != stored_of.layout:
            raise ArtifactError(f"{source} stores another layout than {stored_of.name} has; load it with its own model.")
        if artifact.tensors["weights"].shape != (len(table), layout.size):
            raise ArtifactError(f"{source} is not a zoo: its weights and its table differ in size.")
        return cls(artifact.tensors["weights"], table, stored_of, meta["settings"])
