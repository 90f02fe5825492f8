"""The study of notebook 05: every few-shot method on the same episodes, for one training seed."""

from __future__ import annotations

from torch import Tensor

from flownlib import recipes_fewshot as recipes
from flownlib.profiles import Profile

CODE = recipes.CODE
RIVALS = ("centroid", "plda", "caml")


def raw_records(accuracies: dict[tuple[str, str, int], Tensor]) -> list[dict]:
    """Accuracies by method, domain and shot, and the generated head's paired gains, one value an episode."""
    records = []
    for (method, domain, shot), values in accuracies.items():
        setting = {"domain": domain, "way": recipes.WAY, "shot": shot}
        records.append({"quantity": "test_accuracy", "method": method, "setting": setting, "values": values.tolist()})
        if method == "flown_query":
            for rival in (*RIVALS, "cross_entropy_only"):
                gain = (values - accuracies[rival, domain, shot]).tolist()
                over = {**setting, "over": rival}
                records.append({"quantity": "accuracy_gain", "method": method, "setting": over, "values": gain})
    return records


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """One training seed: backbone, heads, flows and CAML are trained anew, episodes are drawn anew."""
    found = recipes.data(settings, seed)
    return raw_records(recipes.compare(recipes.trained(settings, seed, found), found, seed))
