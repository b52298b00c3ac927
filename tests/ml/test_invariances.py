"""`slmkit doctor --deep`: what must hold is measured, and a breach is seen."""

import torch

from slmkit import demo
from slmkit.ml import batches, invariances


def test_packing_is_measured_and_a_leak_is_seen(tmp_path, monkeypatch):
    trials = invariances.Trials(tmp_path, demo.path("student"), demo.path("train"))
    assert invariances.packed(trials) < 1e-5
    whole = batches.pack
    monkeypatch.setattr(batches, "pack", lambda part: whole(part) | {"position_ids": torch.arange(sum(len(e.ids) for e in part))[None]})
    assert invariances.packed(trials) > 1e-3  # positions that do not begin anew let rows see each other
